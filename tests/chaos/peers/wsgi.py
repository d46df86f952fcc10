"""The service of the chaos suite for WSGI servers."""
import os
import time

import files

PID = str(os.getpid())


def app(environ, start_response):
    if environ["REQUEST_METHOD"] == "POST":
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    else:
        found = files.wanted(environ["PATH_INFO"], environ["QUERY_STRING"])
        if found is None:
            start_response("404 Not Found", [("Content-Length", "0")])
            return [b""]
        _, seconds, body = found
        if seconds:
            time.sleep(seconds)
    headers = [("Content-Length", str(len(body))), ("x-chaos-pid", PID)]
    request = environ.get("HTTP_X_CHAOS_REQUEST")
    if request:
        headers.append(("x-chaos-request", request))
    start_response("200 OK", headers)
    return [body]
