# Connections that were accepted are read by the threads that serve them. With Puma's default, a reactor has those that have
# sent nothing yet, and closes them when Puma is told to stop.
queue_requests false
