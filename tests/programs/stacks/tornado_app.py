"""A Tornado application. See common.py for its variables.

Tornado has no graceful stop of its own: `HTTPServer.stop` accepts no more, and the rest is here.
"""
import asyncio
import signal
import socket

import common
from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler

in_flight = 0
stopping = asyncio.Event()


class Answer(RequestHandler):
    def prepare(self):
        global in_flight
        in_flight += 1
        if stopping.is_set() and common.LINGER:
            self.set_header("Connection", "close")

    def on_finish(self):
        global in_flight
        in_flight -= 1

    async def get(self):
        await asyncio.sleep(common.before(self.request.path))
        for name, value in common.headers().items():
            self.set_header(name, value)
        self.write("Hello from Tornado")


async def main():
    common.start()
    listener = socket.socket(fileno=3)
    listener.setblocking(False)
    server = HTTPServer(Application([(".*", Answer)]))
    server.add_sockets([listener])
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await stopping.wait()
    await asyncio.sleep(common.LINGER)
    server.stop()
    while in_flight:
        await asyncio.sleep(0.01)


asyncio.run(main())
