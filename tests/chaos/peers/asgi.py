"""The service of the chaos suite for ASGI servers."""
import asyncio
import os
import time

import files

PID = str(os.getpid()).encode()


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    status, body = 200, b""
    if scope["method"] == "POST":
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
    else:
        found = files.wanted(scope["path"], scope["query_string"].decode())
        if found is None:
            status = 404
        else:
            way, seconds, body = found
            if way == "wait":
                await asyncio.sleep(seconds)
            elif way == "block":
                time.sleep(seconds)
    headers = [(b"content-length", str(len(body)).encode()), (b"x-chaos-pid", PID)]
    headers += [header for header in scope["headers"] if header[0] == b"x-chaos-request"]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
