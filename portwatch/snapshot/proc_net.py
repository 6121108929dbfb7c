"""Read the kernel's list of sockets from /proc/net/{tcp,tcp6,udp,udp6}."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_ntop

from portwatch.linux.netns import Namespace, all_namespaces, entered, name_of
from portwatch.model import Socket

_LISTEN, _UNCONNECTED = "0A", "07"
_FILES = (
    ("tcp", "ipv4", _LISTEN),
    ("tcp6", "ipv6", _LISTEN),
    ("udp", "ipv4", _UNCONNECTED),
    ("udp6", "ipv6", _UNCONNECTED),
)


@lru_cache(maxsize=4096)
def parse_address(text: str) -> tuple[str, int]:
    """Parse `ADDRESS:PORT` in hex. The address consists of 32-bit words in the machine's byte order."""
    words, _, port = text.partition(":")
    packed = b"".join(
        int(words[start : start + 8], 16).to_bytes(4, sys.byteorder) for start in range(0, len(words), 8)
    )
    return inet_ntop(AF_INET if len(packed) == 4 else AF_INET6, packed), int(port, 16)


def open_rows(lines: Iterator[str], netns: int, proto: str, family: str, state: str) -> Iterator[Socket]:
    """Yield the sockets in `state`.

    For TCP, stop at the first row in another state, because the kernel lists listeners first.
    """
    next(lines, None)  # the header
    for line in lines:
        fields = line.split()
        if fields[3] != state:
            if proto == "tcp":
                return
            continue
        address, port = parse_address(fields[1])
        yield Socket(
            None, int(fields[9]) or None, netns, proto, family, address, port, netns_name=name_of(netns)
        )


def read_namespace(namespace: Namespace) -> list[Socket]:
    """Return the TCP listeners and unconnected UDP sockets of a namespace. Raise OSError."""
    folder = namespace.net or "/proc/thread-self/net"
    sockets: list[Socket] = []
    with nullcontext() if namespace.net else entered(namespace):
        for name, family, state in _FILES:
            try:
                with open(f"{folder}/{name}", encoding="ascii", buffering=1 << 16) as lines:
                    sockets += open_rows(lines, namespace.inode, name.removesuffix("6"), family, state)
            except FileNotFoundError:
                if family == "ipv4":  # a kernel without IPv6 has no tcp6 and udp6
                    raise
    return sockets


def read_all() -> list[Socket]:
    """Return the TCP listeners and unconnected UDP sockets of all visible network namespaces."""
    sockets: list[Socket] = []
    for namespace in all_namespaces():
        try:
            sockets += read_namespace(namespace)
        except OSError:
            # The process has ended, or this user may not read the namespace. Leave the namespace out: this list
            # only completes a snapshot, which finds sockets by their descriptors.
            continue
    return sockets
