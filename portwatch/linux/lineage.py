"""Process identity, and who descends from whom as /proc shows it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from portwatch.errors import PortwatchError, WrongUse
from portwatch.linux import clock, procfs
from portwatch.model import Process

_STRANGERS_MAX = 4096


class Identity(NamedTuple):
    """A pid together with the start time that tells the process from a later one of the same pid."""

    pid: int
    start_time: int


def root_at(pid: int) -> Identity:
    """Return the process with that pid. Raise WrongUse if there is none, or if `pid` is a thread's."""
    try:
        leader = procfs.thread_group(pid)
        if leader != pid:
            raise WrongUse(f"{pid} is a thread of process {leader}: use {leader}")
        return Identity(pid, procfs.stat(pid)[2])
    except procfs.UNREADABLE:
        raise WrongUse(f"there is no process {pid}, or this user may not see it") from None


def identity_of(process: Process) -> Identity:
    """Return the identity of a process from an event or a listener."""
    return Identity(process.pid, process.start_time or 0)


def identity_at(pid: int) -> Identity | None:
    """Return the process that has that pid now, or None."""
    try:
        return Identity(pid, procfs.stat(pid)[2])
    except procfs.UNREADABLE:
        return None


def require_running(process: Identity) -> None:
    """Raise PortwatchError if the process has ended."""
    if identity_at(process.pid) != process:
        raise PortwatchError(f"process {process.pid} has ended")


def has_ended(pid: int, start_ticks: int) -> bool:
    """Return True if the process has ended, even while its parent has not yet waited for it."""
    try:
        return clock.ticks(procfs.stat(pid)[2]) != start_ticks or procfs.is_zombie(pid)
    except procfs.UNREADABLE:
        return True


def with_ancestors(process: Identity) -> Iterator[Identity]:
    """Yield the process, even if it has ended, then its ancestors, nearest first."""
    yield process
    for pid, _, start_time in islice(procfs.ancestors_of(*process), 1, None):
        yield Identity(pid, start_time)


class Lineage:
    """Tree membership read from /proc on demand.

    A process's parent at birth never changes, so what was found out once stays true even
    after the parents have ended.
    """

    def __init__(self) -> None:
        self._members: dict[Identity, int] = {}
        self._strangers: dict[Identity, None] = {}

    def watch(self, root: Identity, tree: int) -> None:
        """Add a process and all its descendants. Raise PortwatchError if it has ended."""
        import psutil  # 31 ms to import, needed only for trees

        psutil.PROCFS_PATH = procfs.root()
        require_running(root)
        try:
            pids = [one.pid for one in psutil.Process(root.pid).children(recursive=True)]
        except psutil.Error:
            raise PortwatchError(f"process {root.pid} has ended") from None
        for one in (root, *filter(None, map(identity_at, pids))):
            self._members[one] = self._members.get(one, 0) | tree
        self._strangers.clear()

    def forget_ended(self) -> None:
        """Drop members that have ended. Their descendants are members themselves by now."""
        self._members = {one: trees for one, trees in self._members.items() if identity_at(one.pid) == one}

    def unwatch(self, tree: int) -> None:
        """Drop a tree."""
        self._members = {one: trees & ~tree for one, trees in self._members.items() if trees & ~tree}

    def of(self, *processes: Process) -> int:
        """Return the trees that the processes belong to, one bit per tree."""
        trees = 0
        if self._members:
            for process in processes:
                trees |= self._of(identity_of(process))
        return trees

    def _of(self, process: Identity) -> int:
        line: list[Identity] = []
        for one in with_ancestors(process):
            if one in self._members:
                self._members.update(dict.fromkeys(line, self._members[one]))
                return self._members[one]
            if one in self._strangers:
                break
            line.append(one)
        while len(self._strangers) >= _STRANGERS_MAX:
            del self._strangers[next(iter(self._strangers))]
        self._strangers.update(dict.fromkeys(line))
        return 0
