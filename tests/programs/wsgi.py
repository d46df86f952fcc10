"""The smallest WSGI application."""
import os


def app(environ, start_response):
    body = b"Hello from WSGI"
    headers = [
        ("Content-Length", str(len(body))),
        ("x-prefork-generation", os.environ.get("PREFORK_GENERATION", "")),
        ("x-prefork-pid", str(os.getpid())),
    ]
    start_response("200 OK", headers)
    return [body]
