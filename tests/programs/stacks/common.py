"""What the Python programs here have in common: variables for tests.

START_DELAY=SECONDS makes a program slow to start; if BROKEN=FILE exists, it cannot start;
IN_FLIGHT=FILE is written when /slow is being answered; with LINGER=SECONDS, a program that is asked
to exit announces closes for that long before it does.
"""
import ctypes
import os
import time

LINGER = float(os.environ.get("LINGER", 0))


def start():
    if os.path.exists(os.environ.get("BROKEN", "")):
        raise RuntimeError("broken")
    time.sleep(float(os.environ.get("START_DELAY", 0)))


def before(path):
    """Does what a path asks for; returns for how many seconds its answer waits."""
    if path == "/slow":
        open(os.environ["IN_FLIGHT"], "w").close()
        return 1
    if path == "/block":
        # As a C library does that keeps the interpreter's lock: no thread goes on.
        ctypes.PyDLL(None).sleep(3600)
    return 0


def headers():
    return {
        "x-prefork-generation": os.environ.get("PREFORK_GENERATION", ""),
        "x-prefork-pid": str(os.getpid()),
    }
