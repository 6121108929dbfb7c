"""Two witnesses of what is open, made one: what an engine found, and what the kernel lists."""

from __future__ import annotations

from collections.abc import Callable

from portwatch.linux import procfs
from portwatch.model import OpenSocket, Snapshot, Socket
from portwatch.snapshot.owners import holders_of


def cross_checked(take: Callable[[], Snapshot], read_listed: Callable[[], list[Socket]]) -> list[OpenSocket]:
    """Every open socket with all its holders; without, those that no process holds.

    A socket that the kernel listed before the snapshot, and lists after it, and that the
    snapshot did not meet, is held by nobody: the kernel's own, or on its way from one
    process to another. Or by a process of which only the host's procfs tells: in a pid
    namespace, BPF looks at that namespace's files alone.
    """
    before = read_listed()
    snapshot = take()
    unmet = [socket for socket in before if socket.inode not in snapshot.seen_inodes]
    if unmet:
        after = set(read_listed())
        unmet = [socket for socket in unmet if socket in after]
    holders = (
        holders_of({socket.inode or 0 for socket in unmet}) if unmet and procfs.root() != procfs.OURS else {}
    )
    return [*snapshot.sockets, *(OpenSocket(socket, holders.get(socket.inode or 0, ())) for socket in unmet)]
