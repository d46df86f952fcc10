"""An ASGI application for uvicorn and hypercorn.

Variables for tests: START_DELAY=SECONDS makes it slow to start; if BROKEN=FILE exists, it cannot
start; IN_FLIGHT=FILE is written when /slow is being answered; with LINGER=SECONDS, SIGUSR1 makes it
announce closes for that long, and exit then.
"""
import asyncio
import os
import signal
import time

if os.path.exists(os.environ.get("BROKEN", "")):
    raise SystemExit("broken")
draining = False


def drain(loop):
    global draining
    draining = True
    loop.call_later(float(os.environ["LINGER"]), signal.raise_signal, signal.SIGINT)


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            if kind == "lifespan.startup":
                await asyncio.sleep(float(os.environ.get("START_DELAY", 0)))
                if "LINGER" in os.environ:
                    loop = asyncio.get_running_loop()
                    loop.add_signal_handler(signal.SIGUSR1, drain, loop)
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    if scope["type"] != "http":
        return
    if scope["path"] == "/slow":
        open(os.environ["IN_FLIGHT"], "w").close()
        await asyncio.sleep(1)
    elif scope["path"] == "/block":
        time.sleep(3600)
    headers = [
        (b"x-prefork-generation", os.environ.get("PREFORK_GENERATION", "").encode()),
        (b"x-prefork-pid", str(os.getpid()).encode()),
    ]
    if draining:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"Hello from ASGI"})
