# A Rack application for unicorn. See common.rb for its variables.
require_relative 'common'

common_start
run(lambda do |env|
  common_before(env['PATH_INFO'])
  [200, common_headers.merge('content-type' => 'text/plain'), ['Hello from unicorn']]
end)
