"""The program that `support.Actor` runs. It executes Python code that it reads from stdin.

Usage: actor.py [new | PATH]. `new` creates and enters a network namespace. PATH names a namespace to enter.
Each line of input is a JSON string that contains a Python expression or statements. Each reply is one line of
JSON: {"value": ...} or {"error": "NAME: message"}.
"""

import ctypes
import errno
import json
import os
import shutil  # noqa: F401  # used by code from tests
import signal
import socket
import struct
import subprocess
import sys
import threading  # noqa: F401  # used by code from tests
import time

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
libc = ctypes.CDLL(None, use_errno=True)

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
V4, V6 = socket.AF_INET, socket.AF_INET6


def check(result):
    """Return the result of a libc call; raise OSError if it is negative."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def listener(address="127.0.0.1", port=0, backlog=16, family=V4, proto=0, options=()):
    """Return a listening TCP socket."""
    sock = socket.socket(family, TCP, proto)
    for level, name, value in options:
        sock.setsockopt(level, name, value)
    sock.bind((address, port))
    sock.listen(backlog)
    return sock


def bound(address="127.0.0.1", port=0, family=V4, kind=UDP):
    """Return a bound socket."""
    sock = socket.socket(family, kind)
    sock.bind((address, port))
    return sock


def disconnect(sock):
    """Disconnect a socket by connect(AF_UNSPEC). Python's socket module cannot do that."""
    check(libc.connect(sock.fileno(), struct.pack("H14x", socket.AF_UNSPEC), 16))


def fork_child():
    """Call os.fork(). The kernel kills the child when this process exits, so no child outlives its test."""
    child = os.fork()
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return child


def fork(run):
    """Fork a child that calls `run` and then sleeps. Return the child's pid once `run` has returned."""
    read_end, write_end = os.pipe()
    child = fork_child()
    if child == 0:
        try:
            run()
            os.write(write_end, b"x")
            time.sleep(600)
        finally:
            os._exit(0)
    os.close(write_end)
    os.read(read_end, 1)
    os.close(read_end)
    return child


def fork_daemon(run):
    """Fork a daemon that waits until init has adopted it, calls `run`, and then sleeps.

    Return the daemon's pid once `run` has returned.
    """
    read_end, write_end = os.pipe()
    intermediate = os.fork()
    if intermediate == 0:
        os.setsid()
        parent = os.getpid()
        if os.fork() == 0:
            try:
                signal.alarm(300)  # in case the test fails before it kills the daemon
                while os.getppid() == parent:
                    time.sleep(0.001)
                run()
                os.write(write_end, str(os.getpid()).encode())
                time.sleep(600)
            finally:
                os._exit(0)
        os._exit(0)
    os.waitpid(intermediate, 0)
    return int(os.read(read_end, 20))


def receive(channel):
    """Receive a descriptor, acknowledge it, and keep it open until killed. Call this only in a child."""
    _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    channel.send(b"x")
    time.sleep(600)
    os._exit(len(descriptors))


def run_in_child(run):
    """Fork a child that calls `run` and then exits. Wait until it has exited."""
    child = os.fork()
    if child == 0:
        try:
            run()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def fork_as(pid, run):
    """Fork a child that has this pid, calls `run` and then sleeps. Return its pid.

    An attempt fails if another process forks first and takes the pid. Return None after 100 failed attempts.
    """
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
    """Send SIGKILL to a child and wait for its exit."""
    os.kill(pid, 9)
    os.waitpid(pid, 0)


def take_descriptor(pid, fd):
    """Return a copy of a descriptor of another process, made by pidfd_open(2) and pidfd_getfd(2)."""
    return check(libc.syscall(438, check(libc.syscall(434, pid, 0)), fd, 0))


def ip(*arguments):
    """Run ip(8) in the current network namespace."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def uring(opcode, fd, address=0, length=0, offset=0):
    """Submit one io_uring request, wait for its completion, and return its result."""
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
    """Return True if io_uring supports bind on this kernel.

    If it does, a bind of a bad descriptor fails with EBADF, otherwise with EINVAL.
    """
    try:
        return uring(IORING_OP_BIND, -1) != -errno.EINVAL
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            return False  # io_uring is not built into the kernel, or is disabled
        raise


def uring_listener(port):
    """Return a listening TCP socket, bound and made to listen through io_uring."""
    sock = socket.socket()
    address = ctypes.create_string_buffer(
        struct.pack("=H", V4) + struct.pack(">H", port) + bytes([127, 0, 0, 1]) + bytes(8)
    )
    for opcode, *arguments in ((IORING_OP_BIND, ctypes.addressof(address), 0, 16), (IORING_OP_LISTEN, 0, 7)):
        result = uring(opcode, sock.fileno(), *arguments)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
    return sock


def enter(namespace):
    """Enter the network namespace at this path. "new" creates one and brings its loopback interface up."""
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
                value = eval(compile(code, "actor", "eval"), names)  # noqa: S307  # running code is the purpose
            except SyntaxError:
                exec(compile(code, "actor", "exec"), names)  # noqa: S102  # running code is the purpose
                value = None
            reply = {
                "value": value if isinstance(value, (int, str, float, list, tuple, type(None))) else repr(value)
            }
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
    os._exit(0)  # do not wait for threads that a test started
