"""An external program: a good server, but a hostile worker in slot 0 while the file that `HOSTILE`
names exists.

The file says which kind. A hostile worker sends its messages to the notify socket, and accepts no
connections.
"""
import array
import os
import runpy
import socket
import struct
import sys
import time


SCM_CREDENTIALS = 2


def line():
    path = os.environ["NOTIFY_SOCKET"]
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    connected.connect("\0" + path[1:] if path.startswith("@") else path)
    return connected


def siblings():
    """The other children of the supervisor."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == os.getppid() and int(pid) != os.getpid():
            yield int(pid)


def note(what):
    """For the test to read."""
    with open(os.environ["HOSTILE"] + ".notes", "a") as file:
        file.write(what + "\n")


def attempt(what, act):
    try:
        act()
        note(f"{what}: done")
    except OSError as error:
        note(f"{what}: {error.strerror}")


def idle():
    while True:
        time.sleep(3600)


def floods(notify):
    notify.send(b"READY=1")
    while True:
        notify.send(b"STATUS=I am fine\nWATCHDOG=1")


def sends_junk(notify):
    notify.send(b"READY=1")
    for junk in [b"", b"\0" * 64, b"\xff" * 4000, b"x" * 70000, b"READY", b"READY=1" + b"x" * 5000,
                 b"STATUS=" + b"\x1b[31m" * 600, b"EXTEND_TIMEOUT_USEC=99999999999999999999999",
                 b"EXTEND_TIMEOUT_USEC=18446744073709551615", b"MAINPID=1",
                 b"FDSTORE=1\nFDNAME=mine",
                 b"WATCHDOG_USEC=1", b"ERRNO=5", b"RELOADING=1\nMONOTONIC_USEC=1", b"\n" * 4000]:
        attempt(f"junk of {len(junk)}", lambda: notify.send(junk))
    note("end")
    idle()


def sends_descriptors(notify):
    notify.send(b"READY=1")
    ends = array.array("i", [notify.fileno()] * 253)
    for turn in range(100):
        # The kernel allows a user only this many on the way.
        while True:
            try:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, ends)
                notify.sendmsg([b"STATUS=%d" % turn], [rights])
                break
            except OSError:
                time.sleep(0.005)
        time.sleep(0.005)
    note("end")
    idle()


def speaks_for_siblings(notify):
    """By forged credentials, and out of their process groups."""
    notify.send(b"READY=1")
    for sibling in siblings():
        forged = struct.pack("iII", sibling, os.getuid(), os.getgid())
        words = b"STATUS=forged\nSTOPPING=1"
        credentials = (socket.SOL_SOCKET, SCM_CREDENTIALS, forged)
        attempt("forge", lambda: notify.sendmsg([words], [credentials]))
        child = os.fork()
        if child == 0:
            # No sibling's group, two generations down, and a child of the supervisor's.
            if os.fork() > 0:
                os._exit(0)
            time.sleep(0.1)
            attempt("join", lambda: os.setpgid(0, sibling))
            notify.send(words)
            # The sender must be there when it is looked at.
            time.sleep(1)
            os._exit(0)
        os.waitpid(child, 0)
    time.sleep(1.2)
    note("end")
    idle()


def starts_never(notify):
    while True:
        notify.send(b"EXTEND_TIMEOUT_USEC=60000000\nSTATUS=soon")
        time.sleep(0.02)


def main():
    hostile = os.environ.get("HOSTILE", "")
    if os.environ["PREFORK_SLOT"] != "0" or not os.path.exists(hostile):
        sys.argv[0] = os.environ["GOOD"]
        runpy.run_path(sys.argv[0], run_name="__main__")
        return
    with open(hostile) as file:
        kind = file.read()
    with open(hostile + ".pids", "a") as file:
        file.write(f"{os.getpid()}\n")
    globals()[kind.replace("-", "_")](line())


main()
