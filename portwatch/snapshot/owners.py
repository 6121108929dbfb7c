"""Find the holders of sockets in /proc/PID/fd of all processes."""

from __future__ import annotations

from collections.abc import Container

from portwatch.linux import procfs
from portwatch.linux.containers import of_process
from portwatch.model import Process


def process(pid: int) -> Process | None:
    """Return a process as it is now, or None if it has ended or this user may not see it."""
    try:
        comm, _, start_time = procfs.stat(pid)
        uid, ns_pid = procfs.uid_and_ns_pid(pid)
        cgroup_info = of_process(pid)
    except procfs.UNREADABLE:
        return None
    return Process(pid, start_time, comm.decode("utf-8", "backslashreplace"), uid, ns_pid, *cgroup_info)


def holders_by_inode(inodes: Container[int]) -> dict[int, tuple[Process, ...]]:
    """Return the holders of each socket, by inode. Sockets without a visible holder are left out."""
    holders: dict[int, list[Process]] = {}
    for pid in procfs.pids():
        try:
            held_inodes = {inode for inode in procfs.socket_inodes(pid) if inode in inodes}
        except procfs.UNREADABLE:
            continue  # the process has ended, or this user may not see its files
        if held_inodes and (holder := process(pid)):
            for inode in held_inodes:
                holders.setdefault(inode, []).append(holder)
    return {inode: tuple(processes) for inode, processes in holders.items()}
