"""A program that performs random operations on sockets and processes.

An actor runs it. The program moves between several network namespaces.
"""

import contextlib
import os
import random
import socket
import time

from actor import TCP, UDP, V4, V6, enter, fork_child, kill

PORTS = range(2000, 2060)


class Program:
    """Opens and closes sockets, and starts and kills children, at random."""

    def __init__(self, seed, namespaces):
        self._random = random.Random(seed)
        self._namespaces = namespaces
        self._sockets = []
        self._children = []
        self._operations = [
            (8, self.open_tcp),
            (3, self.open_udp),
            (2, self.listen_without_bind),
            (1, self.connect_udp),
            (6, self.close),
            (2, self.shut_down),
            (2, self.listen_again),
            (1, self.duplicate),
            (3, self.fork),
            (3, self.kill),
            (2, self.send_to_child),
            (1, self.change_namespace),
            (1, self.run_short_lived_child),
        ]

    def run(self, count):
        """Perform `count` operations. Operations that the kernel refuses count too."""
        weights = [weight for weight, _ in self._operations]
        for _, operation in self._random.choices(self._operations, weights, k=count):
            with contextlib.suppress(OSError):
                operation()

    def _any_socket(self):
        return self._random.choice(self._sockets) if self._sockets else socket.socket()

    def _address(self, family):
        return self._random.choice(("127.0.0.1", "0.0.0.0") if family == V4 else ("::1", "::"))

    def open_tcp(self):
        family = self._random.choice((V4, V6))
        sock = socket.socket(family, TCP, self._random.choice((0, 0, 262)))
        sock.setsockopt(socket.SOL_SOCKET, self._random.choice((socket.SO_REUSEADDR, socket.SO_REUSEPORT)), 1)
        sock.bind((self._address(family), self._random.choice(PORTS)))
        sock.listen(self._random.randrange(1, 100))
        self._sockets.append(sock)

    def open_udp(self):
        family = self._random.choice((V4, V6))
        sock = socket.socket(family, UDP)
        sock.bind((self._address(family), self._random.choice(PORTS)))
        self._sockets.append(sock)

    def listen_without_bind(self):
        sock = socket.socket(self._random.choice((V4, V6)), TCP)
        sock.listen()
        self._sockets.append(sock)

    def connect_udp(self):
        sock = socket.socket(V4, UDP)
        sock.connect(("127.0.0.1", 9))
        self._sockets.append(sock)

    def close(self):
        if self._sockets:
            self._sockets.pop(self._random.randrange(len(self._sockets))).close()

    def shut_down(self):
        self._any_socket().shutdown(socket.SHUT_RD)

    def listen_again(self):
        self._any_socket().listen(self._random.randrange(1, 100))

    def duplicate(self):
        self._sockets.append(self._any_socket().dup())

    def fork(self):
        if len(self._children) > 8:
            self.kill()
        read_end, write_end = os.pipe()
        child = fork_child()
        if child == 0:
            with contextlib.suppress(Exception):
                os.close(read_end)
                self._children = []
                self._random.seed(self._random.random() + 1)
                for _ in range(self._random.randrange(4)):
                    with contextlib.suppress(OSError):
                        self._random.choice((self.open_tcp, self.open_udp, self.close, self.shut_down))()
                os.close(write_end)
                time.sleep(600)
            os._exit(0)
        os.close(write_end)
        os.read(read_end, 1)
        os.close(read_end)
        self._children.append(child)

    def kill(self):
        if self._children:
            kill(self._children.pop(self._random.randrange(len(self._children))))

    def send_to_child(self):
        """Send a socket to a new child and close it here."""
        if not self._sockets:
            return
        sent = self._sockets.pop(self._random.randrange(len(self._sockets)))
        here, there = socket.socketpair()
        child = fork_child()
        if child == 0:
            with contextlib.suppress(Exception):
                sent.close()
                for sock in self._sockets:
                    sock.close()
                here.close()
                socket.recv_fds(there, 1, 1)
                there.send(b"x")
                time.sleep(600)
            os._exit(0)
        there.close()
        socket.send_fds(here, [b"x"], [sent.fileno()])
        here.recv(1)
        here.close()
        sent.close()
        self._children.append(child)

    def change_namespace(self):
        enter(self._random.choice(self._namespaces))

    def run_short_lived_child(self):
        child = fork_child()
        if child == 0:
            with contextlib.suppress(Exception):
                self._random.seed(self._random.random() + 2)
                self.open_tcp()
            os._exit(0)
        os.waitpid(child, 0)
