"""Runs a command as a job of a terminal of its own: `terminal.py foreground|background COMMAND`.

The terminal has `stty tostop`. What the job writes to it goes to this program's standard output.
In the foreground, SIGUSR1 to the process in the file `terminal` changes the size of the window. In
the background, SIGUSR1 to the process in the file `sibling`, another one of the job, makes it write
to the terminal, for which the kernel sends SIGTTOU to the whole job.
"""

import fcntl
import os
import pty
import signal
import struct
import sys
import termios

place, command = sys.argv[1], sys.argv[2:]


def note(name, pid):
    with open(name + ".new", "w") as file:
        file.write(str(pid))
    os.rename(name + ".new", name)


def say(text):
    os.write(1, text)


os.setsid()
main, tty = pty.openpty()
fcntl.ioctl(tty, termios.TIOCSCTTY, 0)
flags = termios.tcgetattr(tty)
flags[3] |= termios.TOSTOP
flags[1] &= ~termios.OPOST
termios.tcsetattr(tty, termios.TCSANOW, flags)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)

job = os.getpid()
holder = os.fork()
if holder == 0:
    # Another job of the same session.
    os.setpgid(0, 0)
    if place == "background":
        os.tcsetpgrp(tty, os.getpid())
    # With a parent in another group of the session, the job is not orphaned, as none of a shell is.
    holder = os.getpid()
    if os.fork() == 0:
        os.setpgid(0, job)

        def stopped(*_):
            say(b"sent SIGTTOU\n")
            os._exit(0)

        def write(*_):
            signal.signal(signal.SIGTTOU, stopped)
            os.write(tty, b"written\n")

        os.close(main)
        signal.signal(signal.SIGUSR1, write)
        note("sibling", os.getpid())
        while os.path.exists(f"/proc/{job}"):
            signal.sigtimedwait([], 0.1)
        os._exit(0)

    os.close(tty)
    size = [25, 80]

    def resize(*_):
        size[0] += 1
        fcntl.ioctl(main, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        say(b"resized\n")

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, resize)
    note("terminal", os.getpid())
    try:
        while text := os.read(main, 65536):
            say(text)
    except OSError:
        pass
    os._exit(0)

while place == "background" and os.tcgetpgrp(tty) != holder:
    pass
while not os.path.exists("sibling"):
    pass

signal.signal(signal.SIGTTOU, signal.SIG_DFL)
os.dup2(tty, 2)
os.set_inheritable(2, True)
os.execvp(command[0], command)
