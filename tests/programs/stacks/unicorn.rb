# unicorn's configuration: a broken application fails in the master, once, and not in each worker
# that it starts, for ever.
preload_app true
timeout 7200
logger Logger.new(nil)
