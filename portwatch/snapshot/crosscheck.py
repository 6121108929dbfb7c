"""Completion of an engine's snapshot with the kernel's own list of sockets."""

from __future__ import annotations

from collections.abc import Callable

from portwatch.linux import procfs
from portwatch.model import OpenSocket, Snapshot, Socket
from portwatch.snapshot.owners import holders_of


def cross_checked(take: Callable[[], Snapshot], read_listed: Callable[[], list[Socket]]) -> list[OpenSocket]:
    """Return every open socket with its holders, including sockets that the snapshot did not see.

    `take` takes the snapshot, `read_listed` reads the kernel's list. A socket counts as missed if it is listed
    both before and after the snapshot: one that opens or closes meanwhile is reported by a record.

    A missed socket belongs to the kernel, is in flight between two processes (SCM_RIGHTS), or is held by a
    process outside of this pid namespace. BPF iterators do not visit such processes, the host's procfs shows
    them.
    """
    before = read_listed()
    snapshot = take()
    missed = [socket for socket in before if socket.inode not in snapshot.seen_inodes]
    if missed:
        after = set(read_listed())
        missed = [socket for socket in missed if socket in after]
    has_host_procfs = procfs.root() != procfs.OWN_ROOT
    holders = holders_of({socket.inode or 0 for socket in missed}) if missed and has_host_procfs else {}
    return [*snapshot.sockets, *(OpenSocket(socket, holders.get(socket.inode or 0, ())) for socket in missed)]
