"""An ASGI application for uvicorn and hypercorn.

Variables for tests: START_DELAY=SECONDS makes it slow to start, IN_FLIGHT=FILE is written
when /slow is being answered.
"""
import asyncio
import os
import time


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            if kind == "lifespan.startup":
                await asyncio.sleep(float(os.environ.get("START_DELAY", 0)))
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
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"Hello from ASGI"})
