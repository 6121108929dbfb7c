"""Complete an engine's snapshot with the sockets that only the kernel's own list has."""

from __future__ import annotations

from collections.abc import Callable

from portwatch.linux import procfs
from portwatch.model import OpenSocket, Snapshot, Socket
from portwatch.snapshot.owners import holders_by_inode


def cross_checked(take: Callable[[], Snapshot], read_listed: Callable[[], list[Socket]]) -> list[OpenSocket]:
    """Return every open socket with its holders, including sockets that the snapshot did not see.

    `take` takes the snapshot. `read_listed` reads the kernel's list. A socket that the snapshot did not see is
    added if it is listed both before and after the snapshot. If a socket opens or closes in between, a record
    reports that.

    The snapshot misses a socket in three cases: the kernel itself owns the socket, the socket is in transit
    between two processes (SCM_RIGHTS), or its holder is outside this pid namespace. BPF iterators do not visit
    such a holder, but the host's procfs shows it.
    """
    before = read_listed()
    snapshot = take()
    missed = [socket for socket in before if socket.inode not in snapshot.seen_inodes]
    if missed:
        after = set(read_listed())
        missed = [socket for socket in missed if socket in after]
    has_host_procfs = procfs.root() != procfs.OWN_ROOT
    holders = holders_by_inode({socket.inode or 0 for socket in missed}) if missed and has_host_procfs else {}
    return [*snapshot.sockets, *(OpenSocket(socket, holders.get(socket.inode or 0, ())) for socket in missed)]
