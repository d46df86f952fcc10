"""A WSGI application with waitress's server. See common.py for its variables.

waitress itself does not wait for requests in flight: `run` leaves its loop, which sends the
responses. So the loop is here.
"""
import signal
import socket
import time

import common
from waitress import channel, create_server, task, wasyncore


def app(environ, start_response):
    time.sleep(common.before(environ["PATH_INFO"]))
    start_response("200 OK", [*common.headers().items(), ("Content-Length", "19")])
    return [b"Hello from waitress"]


class Announcing(task.WSGITask):
    """A WSGI application may not send `Connection` by itself (PEP 3333)."""

    def start(self):
        super().start()
        if stop_at is not None and common.LINGER:
            self.set_close_on_finish()


def stop(*_):
    global stop_at
    stop_at = time.monotonic() + common.LINGER


channel.HTTPChannel.task_class = Announcing
stop_at = None
signal.signal(signal.SIGTERM, stop)
common.start()
server = create_server(app, sockets=[socket.socket(fileno=3)])
while stop_at is None or time.monotonic() < stop_at:
    wasyncore.loop(timeout=0.1, use_poll=True, map=server._map, count=1)
# Accepts no more.
server.del_channel()
while any(one.requests or one.total_outbufs_len for one in server.active_channels.values()):
    wasyncore.loop(timeout=0.1, use_poll=True, map=server._map, count=1)
server.task_dispatcher.shutdown()
