"""A server as plain as can be: it accepts, answers, accepts. Needs sockets on which accept waits.

Sends READY=1 unless READY=no. The answer says whether the socket was blocking at the start.
"""
import os
import signal
import socket

listener = socket.socket(fileno=3)
blocking = os.get_blocking(3)
nothing = os.open("/dev/null", os.O_RDONLY)
# An accept that waits is continued after the handler, and finds no socket.
signal.signal(signal.SIGTERM, lambda *_: os.dup2(nothing, 3))
if os.environ.get("READY") != "no":
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        path = os.environ["NOTIFY_SOCKET"]
        line.sendto(b"READY=1", "\0" + path[1:] if path.startswith("@") else path)
while True:
    try:
        connection, _ = listener.accept()
    except BlockingIOError:
        os._exit(11)
    except OSError:
        break
    with connection:
        request = b""
        while b"\r\n\r\n" not in request:
            more = connection.recv(65536)
            if not more:
                break
            request += more
        body = b"blocking" if blocking else b"non-blocking"
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
        try:
            connection.sendall(head + body)
        except OSError:
            pass
