"""Identities of processes, and membership in process trees, read from /proc."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from portwatch.errors import PortwatchError, WrongUse
from portwatch.linux import clock, procfs
from portwatch.model import Process

_NON_MEMBERS_MAX = 4096


class Identity(NamedTuple):
    """A pid and a start time, which together identify a process. A pid alone may belong to a later process."""

    pid: int
    start_time: int


def root_at(pid: int) -> Identity:
    """Return the identity of the root of a process tree.

    Raise WrongUse if there is no process with this pid, or if `pid` is the id of a thread.
    """
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
    """Return the identity of the process that has this pid now. None if there is none or it cannot be read."""
    try:
        return Identity(pid, procfs.stat(pid)[2])
    except procfs.UNREADABLE:
        return None


def require_running(process: Identity) -> None:
    """Raise PortwatchError if the process has ended."""
    if identity_at(process.pid) != process:
        raise PortwatchError(f"process {process.pid} has ended")


def has_ended(pid: int, start_ticks: int) -> bool:
    """Return True if the process has ended. A zombie has ended, even though /proc still shows it."""
    try:
        return clock.ticks(procfs.stat(pid)[2]) != start_ticks or procfs.is_zombie(pid)
    except procfs.UNREADABLE:
        return True


def with_ancestors(process: Identity) -> Iterator[Identity]:
    """Yield the process itself, even if it has ended. Then yield its ancestors, nearest first."""
    yield process
    for pid, _, start_time in islice(procfs.ancestors_of(*process), 1, None):
        yield Identity(pid, start_time)


class Lineage:
    """Membership in process trees, read from /proc on demand.

    Results are cached. A process stays a member after the ancestors that connect it to the root have ended.
    """

    def __init__(self) -> None:
        self._members: dict[Identity, int] = {}
        self._non_members: dict[Identity, None] = {}
        """A dict used as an ordered set. The oldest entries beyond _NON_MEMBERS_MAX are dropped."""

    def watch(self, root: Identity, tree: int) -> None:
        """Add a tree: the process `root` and all its descendants. `tree` is the bit that stands for the tree.

        Raise PortwatchError if the root has ended.
        """
        import psutil  # 31 ms to import, needed only for trees

        psutil.PROCFS_PATH = procfs.root()
        require_running(root)
        try:
            pids = [child.pid for child in psutil.Process(root.pid).children(recursive=True)]
        except psutil.Error:
            raise PortwatchError(f"process {root.pid} has ended") from None
        for process in (root, *filter(None, map(identity_at, pids))):
            self._members[process] = self._members.get(process, 0) | tree
        self._non_members.clear()

    def forget_ended(self) -> None:
        """Drop members that have ended. Their descendants stay members if `of` has already looked them up."""
        self._members = {
            process: trees for process, trees in self._members.items() if identity_at(process.pid) == process
        }

    def unwatch(self, tree: int) -> None:
        """Remove a tree."""
        self._members = {process: trees & ~tree for process, trees in self._members.items() if trees & ~tree}

    def of(self, *processes: Process) -> int:
        """Return the trees that contain at least one of the processes, one bit per tree."""
        trees = 0
        if self._members:
            for process in processes:
                trees |= self._of(identity_of(process))
        return trees

    def _of(self, process: Identity) -> int:
        unknown: list[Identity] = []
        for ancestor in with_ancestors(process):
            if ancestor in self._members:
                self._members.update(dict.fromkeys(unknown, self._members[ancestor]))
                return self._members[ancestor]
            if ancestor in self._non_members:
                break
            unknown.append(ancestor)
        while len(self._non_members) >= _NON_MEMBERS_MAX:
            del self._non_members[next(iter(self._non_members))]
        self._non_members.update(dict.fromkeys(unknown))
        return 0
