# A Sinatra application for Puma. See common.rb for its variables.
require 'sinatra/base'
require_relative 'common'

common_start
$draining = false
if ENV['LINGER']
  # It replaces Puma's own handler, which restarts the workers of a cluster.
  trap('USR1') do
    $draining = true
    Thread.new do
      sleep ENV['LINGER'].to_f
      Process.kill('INT', Process.pid)
    end
  end
end

class Answer < Sinatra::Base
  set :environment, :production
  get '*' do
    common_before(request.path_info)
    headers common_headers
    headers 'connection' => 'close' if $draining
    'Hello from Sinatra'
  end
end

run Answer
