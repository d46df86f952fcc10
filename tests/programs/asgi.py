"""The smallest ASGI application."""
import os


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    headers = [
        (b"x-prefork-generation", os.environ.get("PREFORK_GENERATION", "").encode()),
        (b"x-prefork-pid", str(os.getpid()).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"Hello from ASGI"})
