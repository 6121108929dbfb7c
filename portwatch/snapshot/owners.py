"""Who holds which socket, where only /proc can tell: a walk over every open file."""

from __future__ import annotations

from collections.abc import Container

from portwatch.linux import procfs
from portwatch.linux.containers import of_process
from portwatch.model import Process


def process(pid: int) -> Process | None:
    """A process as it is now; None if it has ended."""
    try:
        comm, _, start_time = procfs.stat(pid)
        uid, ns_pid = procfs.uid_and_ns_pid(pid)
        place = of_process(pid)
    except procfs.UNREADABLE:
        return None
    return Process(pid, start_time, comm.decode("utf-8", "backslashreplace"), uid, ns_pid, *place)


def holders_of(wanted: Container[int]) -> dict[int, tuple[Process, ...]]:
    """The processes that hold each of the sockets whose inodes are wanted."""
    found: dict[int, list[Process]] = {}
    for pid in procfs.pids():
        try:
            inodes = {inode for inode in procfs.socket_inodes(pid) if inode in wanted}
        except procfs.UNREADABLE:
            continue  # it ended, or is another user's: its sockets are listed without owner
        if inodes and (holder := process(pid)):
            for inode in inodes:
                found.setdefault(inode, []).append(holder)
    return {inode: tuple(holders) for inode, holders in found.items()}
