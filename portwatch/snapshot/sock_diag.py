"""A sock_diag(7) client. It returns sockets with their cookies and backlogs, but without their holders.

For 5,000 listeners this takes 0.03 s. pyroute2's DiagSocket takes 0.69 s, and another 0.28 s to import.
"""

from __future__ import annotations

import os
import socket as sockets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from socket import AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, inet_ntop
from struct import Struct

from portwatch.linux.netns import Namespace, all_namespaces, entered, name_of
from portwatch.model import Socket

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLA_TYPE_MASK = 0x3FFF
_SKV6ONLY, _ULP_INFO = 11, 19
_EXT_INFO = 1 << (2 - 1)  # INET_DIAG_INFO
_REQ_BYTECODE = 1
_BC_S_GE, _BC_S_LE = 2, 3

TIME_WAIT, CLOSE, LISTEN, BOUND_INACTIVE = 1 << 6, 1 << 7, 1 << 10, 1 << 13
CONNECTED = 0xFFF & ~(TIME_WAIT | CLOSE | LISTEN)

_NLMSG = Struct("=IHHII")
_REQUEST = Struct("=BBBxI48x")
_MESSAGE = Struct("=BBBB 2s2s16s16sI Q IIIII")
_ATTRIBUTE = Struct("=HH")
_OPERATION = Struct("=BBH")
_ERRNO = Struct("=i")


@dataclass(frozen=True, slots=True)
class DiagRow:
    """A socket, and the index of the network device that it is bound to. 0 means no device."""

    socket: Socket
    ifindex: int


def dump(netns: int, family: int, protocol: int, states: int, port: int | None = None) -> Iterator[DiagRow]:
    """Yield the sockets of this thread's network namespace that are in one of `states`. Raise OSError.

    `netns` is the inode of that namespace. `states` has one bit per TCP state. Without `port`, all ports match.
    """
    bytecode = b"" if port is None else _port_filter(port)
    # The kernel adds INET_DIAG_ULP_INFO, which identifies MPTCP, only if INET_DIAG_INFO is requested.
    request = _REQUEST.pack(family, protocol, _EXT_INFO, states) + bytecode
    header = _NLMSG.pack(_NLMSG.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | _NLM_F_DUMP, 0, 0)
    with sockets.socket(
        sockets.AF_NETLINK, sockets.SOCK_RAW | sockets.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
    ) as netlink:
        netlink.send(header + request)
        while True:
            batch = netlink.recv(1 << 18)
            offset = 0
            while offset < len(batch):
                length, kind, _, _, _ = _NLMSG.unpack_from(batch, offset)
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    (error,) = _ERRNO.unpack_from(batch, offset + _NLMSG.size)
                    raise OSError(-error, os.strerror(-error))
                yield _row(batch[offset + _NLMSG.size : offset + length], netns, protocol)
                offset += (length + 3) & ~3


def open_sockets(namespace: Namespace) -> list[Socket]:
    """Return the TCP listeners and unconnected UDP sockets of a namespace. Raise OSError."""
    result: list[Socket] = []
    with entered(namespace):
        for protocol, states in ((IPPROTO_TCP, LISTEN), (IPPROTO_UDP, CLOSE)):
            for family in (AF_INET, AF_INET6):
                result += map(_with_device, dump(namespace.inode, family, protocol, states))
    return result


def blocking_sockets(refused: Socket, states: int) -> list[Socket]:
    """Return the sockets in one of `states` that block the address of `refused`."""
    protocol = IPPROTO_TCP if refused.proto == "tcp" else IPPROTO_UDP
    for namespace in all_namespaces():
        if namespace.inode == refused.netns:
            # If the namespace cannot be entered, the blockers stay unknown.
            with suppress(OSError), entered(namespace):
                return [
                    row.socket
                    for family in (AF_INET, AF_INET6)
                    for row in dump(namespace.inode, family, protocol, states, refused.port)
                    if row.socket.blocks(refused)
                ]
    return []


def _port_filter(port: int) -> bytes:
    """Return the request attribute that restricts a dump to sockets with this local port."""
    # An operation is (code, jump if true, jump if false). The operand that follows it is the port. A jump to
    # the end of the program accepts the socket. A jump beyond the end rejects the socket.
    program = (
        _OPERATION.pack(_BC_S_GE, 8, 20)
        + _OPERATION.pack(0, 0, port)
        + _OPERATION.pack(_BC_S_LE, 8, 12)
        + _OPERATION.pack(0, 0, port)
    )
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(program), _REQ_BYTECODE) + program


def _row(message: bytes, netns: int, protocol: int) -> DiagRow:
    family, state, _, _, port, _, source, _, ifindex, cookie, _, _, backlog, _, inode = _MESSAGE.unpack_from(
        message
    )
    attributes = dict(_attributes(message))
    is_ipv6 = family == AF_INET6
    socket = Socket(
        cookie,
        inode or None,
        netns,
        "tcp" if protocol == IPPROTO_TCP else "udp",
        "ipv6" if is_ipv6 else "ipv4",
        inet_ntop(family, source if is_ipv6 else source[:4]),
        int.from_bytes(port, "big"),
        mptcp=b"mptcp" in attributes.get(_ULP_INFO, b""),
        v6only=bool(attributes.get(_SKV6ONLY, b"\0")[0]) if is_ipv6 else None,
        backlog=backlog if 1 << state == LISTEN else None,
        netns_name=name_of(netns),
    )
    return DiagRow(socket, ifindex)


def _attributes(message: bytes) -> Iterator[tuple[int, bytes]]:
    offset = _MESSAGE.size
    while offset + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, offset)
        yield kind & _NLA_TYPE_MASK, message[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def _with_device(row: DiagRow) -> Socket:
    if not row.ifindex:
        return row.socket
    try:
        return replace(row.socket, device=sockets.if_indextoname(row.ifindex))
    except OSError:
        return row.socket  # the device has been removed
