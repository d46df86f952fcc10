# What the Ruby programs here have in common: variables for tests.
#
# START_DELAY=SECONDS makes a program slow to start; if BROKEN=FILE exists, it cannot start;
# IN_FLIGHT=FILE is written when /slow is being answered.
require 'fiddle'

def common_start
  raise 'broken' if File.exist?(ENV['BROKEN'].to_s)

  sleep ENV.fetch('START_DELAY', '0').to_f
end

# Does what a path asks for.
def common_before(path)
  case path
  when '/slow'
    File.write(ENV['IN_FLIGHT'], '')
    sleep 1
  when '/block'
    # As a C library does that keeps the interpreter's lock.
    c_sleep = Fiddle::Handle::DEFAULT['sleep']
    Fiddle::Function.new(c_sleep, [Fiddle::TYPE_INT], Fiddle::TYPE_INT, need_gvl: true).call(3600)
  end
end

def common_headers
  {
    'x-prefork-generation' => ENV['PREFORK_GENERATION'].to_s,
    'x-prefork-pid' => Process.pid.to_s
  }
end
