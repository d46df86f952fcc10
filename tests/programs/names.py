"""Answers each connection with the name (LISTEN_FDNAMES) of the socket that it came by.

It handles no signals.
"""
import os
import select
import socket

names = os.environ["LISTEN_FDNAMES"].split(":")
listeners = {socket.socket(fileno=3 + place): name for place, name in enumerate(names)}
for listener in listeners:
    listener.setblocking(False)
while True:
    for listener in select.select(list(listeners), [], [])[0]:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            continue
        with connection:
            connection.settimeout(10)
            connection.recv(4096)
            body = listeners[listener].encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode() + body)
            connection.shutdown(socket.SHUT_WR)
