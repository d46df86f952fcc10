"""A server that crashes on request: `GET /HEX` runs the Python program of these hexadecimal digits,
then answers.

`GET /` answers with the process's id. SIGTERM ends it at once, by the signal.
"""
import os
import socket
import sys

listener = socket.socket(fileno=3)
listener.setblocking(True)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
    path = os.environ["NOTIFY_SOCKET"]
    line.sendto(b"READY=1", "\0" + path[1:] if path.startswith("@") else path)
while True:
    try:
        connection, _ = listener.accept()
    except BlockingIOError:
        import select

        select.select([listener], [], [])
        continue
    with connection:
        request = b""
        while b"\r\n\r\n" not in request:
            more = connection.recv(65536)
            if not more:
                break
            request += more
        words = request.split()
        if len(words) > 1 and len(words[1]) > 1:
            exec(bytes.fromhex(words[1][1:].decode()).decode(), globals())
        body = str(os.getpid()).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        try:
            connection.sendall(head.encode() + body)
        except OSError:
            pass
