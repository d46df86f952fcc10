"""A WSGI application for gunicorn.

Variables for tests: START_DELAY=SECONDS makes it slow to start; if BROKEN=FILE exists, it cannot
start; IN_FLIGHT=FILE is written when /slow is being answered.
"""
import os
import time

if os.path.exists(os.environ.get("BROKEN", "")):
    raise RuntimeError("broken")
time.sleep(float(os.environ.get("START_DELAY", 0)))


def app(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        open(os.environ["IN_FLIGHT"], "w").close()
        time.sleep(1)
    elif environ["PATH_INFO"] == "/block":
        time.sleep(3600)
    body = b"Hello from WSGI"
    headers = [
        ("Content-Length", str(len(body))),
        ("x-prefork-generation", os.environ.get("PREFORK_GENERATION", "")),
        ("x-prefork-pid", str(os.getpid())),
    ]
    start_response("200 OK", headers)
    return [body]
