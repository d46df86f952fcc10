"""An aiohttp application. See common.py for its variables. SIGUSR1 begins to announce closes."""
import asyncio
import signal
import socket

import common
from aiohttp import web

draining = False


def drain(loop):
    global draining
    draining = True
    loop.call_later(common.LINGER, signal.raise_signal, signal.SIGTERM)


async def answer(request):
    await asyncio.sleep(common.before(request.path))
    response = web.Response(text="Hello from aiohttp", headers=common.headers())
    if draining:
        response.force_close()
    return response


async def listen_for_drain(_):
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, drain, loop)


common.start()
app = web.Application()
app.router.add_get("/{path:.*}", answer)
app.on_startup.append(listen_for_drain)
web.run_app(app, sock=socket.socket(fileno=3), print=None)
