"""A BPF pass over the open files of all processes: a row for each descriptor of a socket."""

from __future__ import annotations

from collections.abc import Iterable

from portwatch.model import OpenSocket, Process, Snapshot, Socket
from portwatch.record import (
    LAYOUT,
    PORT_CHOSEN,
    PROTOCOLS,
    TCP_ESTABLISHED,
    TCP_LISTEN,
    RawRecord,
    process_of,
    socket_of,
)

_READ_BYTES = 1 << 20


def read_pass(fd: int) -> list[RawRecord]:
    """The rows of a pass that begins with the reading of `fd`, which is closed behind it."""
    rows: list[RawRecord] = []
    with open(fd, "rb", buffering=0) as file:
        # None is EAGAIN: the kernel passed a million files that are no sockets, and pauses there.
        while (content := file.read(_READ_BYTES)) != b"":
            rows += map(RawRecord._make, LAYOUT.iter_unpack(content or b""))
    return rows


def open_sockets(rows: Iterable[RawRecord], *, ephemeral: bool) -> Snapshot:
    """Every open socket that a process holds, with all its holders."""
    sockets: dict[int, Socket] = {}
    holders: dict[int, dict[Process, None]] = {}
    trees: dict[int, int] = {}
    met = set()
    for raw in rows:
        met.add(raw.inode)
        if not _is_open(raw, ephemeral):
            continue
        if raw.inode not in sockets:
            sockets[raw.inode] = socket_of(raw)
            holders[raw.inode], trees[raw.inode] = {}, 0
        trees[raw.inode] |= raw.trees
        holders[raw.inode][process_of(raw)] = None
    return Snapshot(
        tuple(OpenSocket(socket, tuple(holders[inode]), trees[inode]) for inode, socket in sockets.items()),
        frozenset(met),
    )


def _is_open(raw: RawRecord, ephemeral: bool) -> bool:
    """Whether others can reach a socket."""
    if PROTOCOLS[raw.protocol] == "tcp":
        return raw.state == TCP_LISTEN
    return raw.state != TCP_ESTABLISHED if raw.flags & PORT_CHOSEN else ephemeral
