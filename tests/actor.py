"""A process that does what a test tells it to, line by line, in a network namespace of its own.

Run as: actor.py [new | PATH of a namespace to enter]. Each line of stdin is a Python expression
or statement; its answer is a line of JSON: {"value": ...} or {"error": the exception's name}.
"""

import ctypes
import errno
import json
import os
import shutil  # noqa: F401  # named in the lines of tests
import signal
import socket
import struct
import subprocess
import sys
import threading  # noqa: F401  # named in the lines of tests
import time

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
libc = ctypes.CDLL(None, use_errno=True)

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
V4, V6 = socket.AF_INET, socket.AF_INET6


def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def listener(address="127.0.0.1", port=0, backlog=16, family=V4, proto=0, options=()):
    """A listening TCP socket."""
    made = socket.socket(family, TCP, proto)
    for level, name, value in options:
        made.setsockopt(level, name, value)
    made.bind((address, port))
    made.listen(backlog)
    return made


def bound(address="127.0.0.1", port=0, family=V4, kind=UDP):
    """A bound socket."""
    made = socket.socket(family, kind)
    made.bind((address, port))
    return made


def disconnect(made):
    """connect(AF_UNSPEC), which Python's socket cannot say."""
    check(libc.connect(made.fileno(), struct.pack("H14x", socket.AF_UNSPEC), 16))


def fork_child():
    """fork, but the child ends with us: nothing of a test outlives it."""
    child = os.fork()
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return child


def fork(run):
    """A child that does `run`, then sleeps until it is killed; waits until it has done it."""
    there, here = os.pipe()
    child = fork_child()
    if child == 0:
        try:
            run()
            os.write(here, b"x")
            time.sleep(600)
        finally:
            os._exit(0)
    os.close(here)
    os.read(there, 1)
    os.close(there)
    return child


def daemon(run):
    """A process that init has adopted, which then does `run`; returns its pid when it has done it."""
    there, here = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.setsid()
        parent = os.getpid()
        if os.fork() == 0:
            try:
                signal.alarm(300)  # nobody is left to end it
                while os.getppid() == parent:
                    time.sleep(0.001)
                run()
                os.write(here, str(os.getpid()).encode())
                time.sleep(600)
            finally:
                os._exit(0)
        os._exit(0)
    os.waitpid(middle, 0)
    return int(os.read(there, 20))


def receive(channel):
    """A child that waits for a descriptor, answers, and keeps it until it is killed."""
    _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    channel.send(b"x")
    time.sleep(600)
    os._exit(len(descriptors))


def flash(run):
    """A child that does `run` and is gone."""
    child = os.fork()
    if child == 0:
        try:
            run()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def as_pid(pid, run):
    """A child of that pid, if the kernel can be had to give it (nobody else must fork meanwhile), else None."""
    for _ in range(100):
        with open("/proc/sys/kernel/ns_last_pid", "w") as file:
            file.write(str(pid - 1))
            file.flush()
            child = fork_child()
        if child == 0:
            if os.getpid() == pid:
                run()
            time.sleep(600)
            os._exit(0)
        if child == pid:
            return child
        kill(child)
    return None


def kill(pid):
    """Ends a child at once, and waits for it."""
    os.kill(pid, 9)
    os.waitpid(pid, 0)


def ip(*arguments):
    """The ip command, in our namespace."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def uring(opcode, fd, address=0, length=0, offset=0):
    """One request through io_uring, the way liburing does it."""
    parameters = bytearray(120)
    buffer = (ctypes.c_char * 120).from_buffer(parameters)
    ring = check(libc.syscall(425, 4, buffer))
    try:
        import mmap

        fields = struct.unpack_from("=10I", parameters, 0)
        assert fields[0] >= 1
        _, sq_tail, _, _, _, _, sq_array = struct.unpack_from("=7I", parameters, 40)
        _, cq_tail, _, _, _, cqes = struct.unpack_from("=6I", parameters, 80)
        sq = mmap.mmap(ring, 4096, flags=mmap.MAP_SHARED, offset=0)
        cq = mmap.mmap(ring, 4096, flags=mmap.MAP_SHARED, offset=0x8000000)
        sqes = mmap.mmap(ring, 4096, flags=mmap.MAP_SHARED, offset=0x10000000)
        sqes[:64] = struct.pack("=BBHiQQIIQ24x", opcode, 0, 0, fd, offset, address, length, 0, 1)
        struct.pack_into("=I", sq, sq_array, 0)
        struct.pack_into("=I", sq, sq_tail, 1)
        check(libc.syscall(426, ring, 1, 1, 1, None, 0))
        assert struct.unpack_from("=I", cq, cq_tail)[0] == 1
        return struct.unpack_from("=Qi", cq, cqes)[1]
    finally:
        os.close(ring)


IORING_OP_BIND, IORING_OP_LISTEN = 56, 57


def has_uring_bind():
    """Whether io_uring knows how to bind: EINVAL says no, EBADF that it would."""
    try:
        return uring(IORING_OP_BIND, -1) != -errno.EINVAL
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            return False  # not built in, or switched off
        raise


def uring_listener(port):
    """A listener whose bind and listen went through io_uring."""
    made = socket.socket()
    address = ctypes.create_string_buffer(
        struct.pack("=H", V4) + struct.pack(">H", port) + bytes([127, 0, 0, 1]) + bytes(8)
    )
    for opcode, *arguments in ((IORING_OP_BIND, ctypes.addressof(address), 0, 16), (IORING_OP_LISTEN, 0, 7)):
        result = uring(opcode, made.fileno(), *arguments)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
    return made


def enter(namespace):
    if namespace == "new":
        check(libc.unshare(CLONE_NEWNET))
        ip("link", "set", "lo", "up")
    else:
        with open(namespace, "rb") as file:
            check(libc.setns(file.fileno(), CLONE_NEWNET))


def main():
    for namespace in sys.argv[1:]:
        enter(namespace)
    names = globals()
    for line in sys.stdin:
        code = json.loads(line)
        try:
            try:
                value = eval(compile(code, "actor", "eval"), names)  # noqa: S307  # it is what we are for
            except SyntaxError:
                exec(compile(code, "actor", "exec"), names)  # noqa: S102
                value = None
            answer = {
                "value": value if isinstance(value, (int, str, float, list, tuple, type(None))) else repr(value)
            }
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
    os._exit(0)  # whatever threads a test has left: when it has gone, so have we
