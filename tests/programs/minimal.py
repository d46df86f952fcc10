"""A minimal server: descriptors from 3 on, SIGTERM, and systemd's notifications.

Variables for tests: READY=no sends no notification; START_DELAY=SECONDS makes it slow to start;
START_WHEN=FILE makes it wait for a file; if BROKEN=FILE exists, it cannot start; IN_FLIGHT=FILE is
written when /slow is being answered; SHUTDOWN=yes shuts its listening sockets down when it is told
to stop, as WEBrick does.
"""
import os
import select
import signal
import socket
import time


def notify(text):
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.sendto(text.encode(), "\0" + path[1:] if path.startswith("@") else path)


def answer(connection):
    connection.settimeout(10)
    request = b""
    while b"\r\n\r\n" not in request:
        more = connection.recv(4096)
        if not more:
            return
        request += more
    path = request.split()[1].decode()
    if path == "/slow":
        open(os.environ["IN_FLIGHT"], "w").close()
        time.sleep(1)
    elif path == "/block":
        time.sleep(3600)
    elif path.startswith("/sleep/"):
        time.sleep(float(path.rsplit("/", 1)[1]))
    body = os.environ.get("BODY", "Hello from Python").encode()
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
        f"x-prefork-pid: {os.getpid()}\r\nx-prefork-slot: {os.environ.get('PREFORK_SLOT', '')}\r\n"
        f"x-prefork-generation: {os.environ.get('PREFORK_GENERATION', '')}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    connection.shutdown(socket.SHUT_WR)
    # Between requests, so that none is lost.
    if path == "/crash":
        raise SystemExit(3)


def main():
    assert not os.path.exists(os.environ.get("BROKEN", "")), "broken"
    assert os.environ["LISTEN_PID"] == str(os.getpid()), "the sockets are for another process"
    listeners = [socket.socket(fileno=3 + n) for n in range(int(os.environ["LISTEN_FDS"]))]
    for listener in listeners:
        listener.setblocking(False)
    # A signal makes the select below return.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGTERM, lambda *_: None)
    time.sleep(float(os.environ.get("START_DELAY", 0)))
    while "START_WHEN" in os.environ and not os.path.exists(os.environ["START_WHEN"]):
        time.sleep(0.01)
    if os.environ.get("READY") != "no":
        notify("READY=1\nSTATUS=waiting for connections")
    while True:
        found, _, _ = select.select([reader, *listeners], [], [])
        if reader in found:
            notify("STOPPING=1")
            for listener in listeners if os.environ.get("SHUTDOWN") else []:
                listener.shutdown(socket.SHUT_RDWR)
            return
        for listener in found:
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                continue
            with connection:
                try:
                    answer(connection)
                except OSError:
                    pass


main()
