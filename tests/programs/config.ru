# A Rack application for Puma.
#
# Variables for tests: START_DELAY=SECONDS makes it slow to start; if BROKEN=FILE exists, it cannot
# start; IN_FLIGHT=FILE is written when /slow is being answered.
require 'fiddle'

raise 'broken' if File.exist?(ENV['BROKEN'].to_s)
sleep ENV.fetch('START_DELAY', '0').to_f

run(lambda do |env|
  case env['PATH_INFO']
  when '/slow'
    File.write(ENV['IN_FLIGHT'], '')
    sleep 1
  when '/block'
    # As a C library does that keeps the interpreter's lock.
    c_sleep = Fiddle::Handle::DEFAULT['sleep']
    Fiddle::Function.new(c_sleep, [Fiddle::TYPE_INT], Fiddle::TYPE_INT, need_gvl: true).call(3600)
  end
  headers = {
    'content-type' => 'text/plain',
    'x-prefork-generation' => ENV['PREFORK_GENERATION'].to_s,
    'x-prefork-pid' => Process.pid.to_s
  }
  [200, headers, ['Hello from Puma']]
end)
