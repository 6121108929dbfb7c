"""Snapshots from a BPF iterator that visits all open files and outputs one row per socket descriptor."""

from __future__ import annotations

from collections.abc import Iterable

from portwatch.model import OpenSocket, Process, Snapshot, Socket
from portwatch.record import (
    LAYOUT,
    PORT_CHOSEN,
    PROTOCOL_NAMES,
    TCP_ESTABLISHED,
    TCP_LISTEN,
    RawRecord,
    process_of,
    socket_of,
)

_READ_BYTES = 1 << 20


def read_pass(fd: int) -> list[RawRecord]:
    """Read all rows of an iterator from its descriptor `fd`, and close `fd`."""
    rows: list[RawRecord] = []
    with open(fd, "rb", buffering=0) as file:
        # After a million files without output, the kernel returns EAGAIN, for which read() returns None. The
        # next read() continues.
        while (content := file.read(_READ_BYTES)) != b"":
            rows += map(RawRecord._make, LAYOUT.iter_unpack(content or b""))
    return rows


def snapshot_of(rows: Iterable[RawRecord], *, ephemeral: bool) -> Snapshot:
    """Return the open sockets among the rows, each with all its holders.

    If `ephemeral` is set, the result includes UDP sockets whose port the kernel chose.
    """
    sockets: dict[int, Socket] = {}
    holders: dict[int, dict[Process, None]] = {}
    trees: dict[int, int] = {}
    seen_inodes = set()
    for raw in rows:
        seen_inodes.add(raw.inode)
        if not _is_open(raw, ephemeral):
            continue
        if raw.inode not in sockets:
            sockets[raw.inode] = socket_of(raw)
            holders[raw.inode], trees[raw.inode] = {}, 0
        trees[raw.inode] |= raw.trees
        holders[raw.inode][process_of(raw)] = None
    return Snapshot(
        tuple(OpenSocket(socket, tuple(holders[inode]), trees[inode]) for inode, socket in sockets.items()),
        frozenset(seen_inodes),
    )


def _is_open(raw: RawRecord, ephemeral: bool) -> bool:
    """Return True if the socket counts as an open port.

    A TCP socket must listen. A UDP socket must be unconnected if the program chose its port. A UDP socket whose
    port the kernel chose counts if `ephemeral` is set.
    """
    if PROTOCOL_NAMES[raw.protocol] == "tcp":
        return raw.state == TCP_LISTEN
    return raw.state != TCP_ESTABLISHED if raw.flags & PORT_CHOSEN else ephemeral
