"""A Sanic application. See common.py for its variables. SIGUSR1 begins to announce closes."""
import asyncio
import signal
import socket

import common
from sanic import Sanic, text

app = Sanic("stack")
draining = False


def drain(loop):
    global draining
    draining = True
    loop.call_later(common.LINGER, app.stop)


@app.after_server_start
async def listen_for_drain(app, loop):
    loop.add_signal_handler(signal.SIGUSR1, drain, loop)


@app.get("/<path:path>")
async def answer(request, path):
    await asyncio.sleep(common.before(request.path))
    return text("Hello from Sanic", headers=common.headers())


@app.on_response
async def announce(request, response):
    if draining:
        # Sanic writes the header by itself.
        request.stream.keep_alive = False


common.start()
app.run(sock=socket.socket(fileno=3), single_process=True, motd=False, access_log=False)
