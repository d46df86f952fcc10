"""A worker that tries what a worker must not: `GET /NAME/ARGUMENT` answers `done`, or the name of
the error.

Needs nothing but Linux on x86-64 or aarch64. What it takes, it gives back where that can be.
"""
import ctypes
import errno
import os
import platform
import signal
import socket
import struct

libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
SO_ATTACH_REUSEPORT_CBPF, SO_DETACH_REUSEPORT_BPF = 51, 68
SYS_PROCESS_VM_READV = 310 if X86 else 270
SYS_IO_URING_SETUP = 425
CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x00020000


def system_call(number, *arguments):
    """With whole registers: by itself, ctypes fills half of one for a number."""
    whole = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return libc.syscall(ctypes.c_long(number), *whole)


def check(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def listener(family=socket.AF_INET):
    """The first inherited socket of a family."""
    for number in range(3, 3 + int(os.environ["LISTEN_FDS"])):
        found = socket.socket(fileno=os.dup(number))
        if found.family == family:
            return found
    raise OSError(errno.ENOENT, "no such listener")


def process(name):
    """`supervisor`, `sibling` (a worker of the same supervisor), or a number."""
    if name == "supervisor":
        return os.getppid()
    if name != "sibling":
        return int(name)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            # It has just ended.
            continue
        if parent == os.getppid() and int(pid) != os.getpid():
            return int(pid)
    raise OSError(errno.ENOENT, "no sibling")


def bind(port):
    with socket.socket() as one:
        one.bind(("0.0.0.0", int(port)))


def udp(_):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()


def write(path):
    with open(path, "w"):
        pass
    os.remove(path)


def read(path):
    with open(path, "rb") as file:
        file.read(1)


def execute(path):
    child = os.posix_spawn(path, [path], {})
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise OSError(errno.EACCES, f"status {status}")


def kill(name):
    os.kill(process(name), 0)


def own_group():
    """A socket of our own that is its own group."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return one


def attach_to(one):
    # return 0: the first member gets everything.
    code = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(code))
    one.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, program)


def detach_from(one):
    one.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)


def attach(_):
    attach_to(listener())


def detach(_):
    detach_from(listener())


def own_attach(_):
    attach_to(own_group())


def own_detach(_):
    one = own_group()
    try:
        attach_to(one)
    except OSError:
        pass
    detach_from(one)


def ptrace(name):
    pid = process(name)
    seize, detach_, interrupt = 0x4206, 17, 0x4207
    check(libc.ptrace(seize, pid, None, None))
    check(libc.ptrace(interrupt, pid, None, None))
    os.waitpid(pid, 0x40000000)
    check(libc.ptrace(detach_, pid, None, None))


def memory(name):
    # One byte of the address space's first page, which no process maps: EFAULT tells that it might
    # be read.
    byte = ctypes.create_string_buffer(1)
    here = (ctypes.c_size_t * 2)(ctypes.addressof(byte), 1)
    there = (ctypes.c_size_t * 2)(0, 1)
    read = system_call(SYS_PROCESS_VM_READV, process(name), here, 1, there, 1, 0)
    if read < 0 and ctypes.get_errno() != errno.EFAULT:
        check(-1)


def proc_memory(name):
    os.close(os.open(f"/proc/{process(name)}/mem", os.O_RDONLY))


def connect(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.connect("\0" + path[1:] if path.startswith("@") else path)


def mount(_):
    with_namespace(lambda: check(libc.mount(b"none", b"/mnt", b"tmpfs", 0, None)))


def with_namespace(act):
    """In a child, which takes its mounts with it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            check(libc.unshare(CLONE_NEWNS))
            check(libc.mount(None, b"/", None, 1 << 18 | 1 << 14, None))
            act()
            os.write(writer, b"0")
        except OSError as error:
            os.write(writer, str(error.errno).encode())
        os._exit(0)
    os.close(writer)
    number = int(os.read(reader, 9))
    os.close(reader)
    os.waitpid(child, 0)
    if number:
        raise OSError(number, os.strerror(number))


def clone(_):
    """A process in a user namespace of its own, by the call that fork uses."""
    flags = CLONE_NEWUSER | signal.SIGCHLD
    child = system_call(56 if X86 else 220, flags, 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    check(child)
    os.waitpid(child, 0)


def io_uring(_):
    parameters = ctypes.create_string_buffer(120)
    ring = system_call(SYS_IO_URING_SETUP, 1, parameters)
    check(ring)
    os.close(ring)


def limit(name):
    import resource

    values = resource.getrlimit(getattr(resource, "RLIMIT_" + name.upper()))
    return ":".join(map(str, values))


def names(path):
    return " ".join(sorted(os.listdir(path)))


def attempt(name, argument):
    act = {
        "bind": bind, "udp": udp, "write": write, "read": read, "execute": execute,
        "kill": kill, "attach": attach,
        "detach": detach, "own_attach": own_attach, "own_detach": own_detach, "ptrace": ptrace,
        "memory": memory,
        "proc_memory": proc_memory, "connect": connect, "mount": mount, "clone": clone,
        "io_uring": io_uring,
        "limit": limit, "names": names,
    }[name]  # fmt: skip
    try:
        return act(argument) or "done"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


def main():
    path = os.environ["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.sendto(b"READY=1", "\0" + path[1:] if path.startswith("@") else path)
    server = listener(socket.AF_UNIX)
    server.setblocking(True)
    while True:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(10)
            words = connection.recv(4096).decode().split()
            if len(words) < 2:
                continue
            _, name, argument = (words[1] + "/").split("/", 2)
            body = attempt(name, argument.removesuffix("/")).encode()
            head = (
                f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
                f"x-prefork-pid: {os.getpid()}\r\n\r\n"
            )
            connection.sendall(head.encode() + body)


main()
