"""Process trees: a root, and all that descends from it.

Where the kernel tells of forks, it keeps the members itself (Members); else /proc is asked when
something happens (Lineage), as far as it can tell.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from itertools import islice
from operator import or_
from typing import NamedTuple, Protocol

from portwatch import clock, procfs
from portwatch.errors import PortwatchError
from portwatch.model import Listener, Process

log = logging.getLogger("portwatch")

MOST = 64
"""Trees at once: each has a bit."""
NO_ROOM = "there is no room for more processes in the watched trees: watch fewer"
_ROOM = 65536
"""For members in the kernel. A pass over them begins anew whenever the one that it stands at ends."""
_REMEMBERED = 4096


class Identity(NamedTuple):
    """A process, told from a later one of the same pid by its start."""

    pid: int
    start_time: int


def root_at(pid: int) -> Identity:
    """The process of that pid. Raises PortwatchError if there is none, or if it is a thread's number."""
    try:
        leader = procfs.thread_group(pid)
        if leader != pid:
            raise PortwatchError(f"{pid} is a thread of process {leader}: say --pid {leader}")
        return _identity(pid)
    except procfs.UNREADABLE:
        raise PortwatchError(f"there is no process {pid}, or not for us to see") from None


def identity_of(process: Process) -> Identity:
    """What tells a process from a later one of its pid."""
    return Identity(process.pid, process.start_time or 0)


def lineage_of(pids: Sequence[int], engine: str) -> Lineage:
    """These processes and what descends from them, as far as /proc tells it now.

    Raises PortwatchError where a process is not there, or where the engine knows it by another pid than we.
    """
    if pids and engine != "poll":  # which has its pids from /proc, as we have ours
        procfs.require_all_processes()
    lineage = Lineage()
    for pid in pids:
        lineage.watch(root_at(pid), 1)
    return lineage


def of_trees(pids: Sequence[int], listeners: Iterable[Listener], engine: str) -> list[Listener]:
    """Those that these processes, or what descends from them, hold now; without pids, all of them.

    Raises PortwatchError as `lineage_of` does.
    """
    lineage = lineage_of(pids, engine)
    return [one for one in listeners if not pids or lineage.of(*one.holders)]


def descend(root: Identity, join: Callable[[Identity], object]) -> None:
    """Has a process and every descendant join, and those who are born meanwhile, until there are none.

    Raises PortwatchError if the root has ended.
    """
    import psutil  # 31 ms, which only those pay who ask for a tree

    psutil.PROCFS_PATH = procfs.root()
    joined: set[Identity] = set()
    while True:
        try:
            if _identity(root.pid) != root:
                raise ProcessLookupError
            pids = [root.pid, *(one.pid for one in psutil.Process(root.pid).children(recursive=True))]
        except (*procfs.UNREADABLE, psutil.Error):
            raise PortwatchError(f"process {root.pid} has ended") from None
        new = {one for pid in pids if (one := _identity_if_there(pid))} - joined
        if not new:
            return
        for one in new:
            join(one)
        joined |= new


class Bits:
    """Which bit stands for which tree, while somebody watches it."""

    def __init__(self) -> None:
        self._users: dict[Identity, int] = {}
        self._bits: dict[Identity, int] = {}

    @property
    def all(self) -> int:
        """The bits of all."""
        return sum(self._bits.values())

    def take(self, root: Identity) -> tuple[int, bool]:
        """The bit of a tree, and whether nobody had it before. Raises PortwatchError if there are too many."""
        is_new = root not in self._bits
        if is_new:
            free = next((1 << index for index in range(MOST) if not self.all & 1 << index), None)
            if free is None:
                raise PortwatchError(
                    f"{MOST} process trees at once are the most; remove_pid makes room for another"
                )
            self._bits[root], self._users[root] = free, 0
        self._users[root] += 1
        return self._bits[root], is_new

    def give_back(self, root: Identity) -> tuple[int, bool]:
        """The bit of a tree, and whether nobody has it any more."""
        self._users[root] -= 1
        if self._users[root]:
            return self._bits[root], False
        del self._users[root]
        return self._bits.pop(root), True


class MemberMap(Protocol):
    """Pid to (start, trees), in the kernel, whose programs change it meanwhile."""

    def get(self, pid: int) -> tuple[int, int] | None:
        """What is kept of a process."""

    def put(self, pid: int, start: int, trees: int) -> None:
        """Keeps this of it. Raises PortwatchError if there is no room."""

    def remove(self, pid: int) -> None:
        """Keeps nothing of it, and is content if nothing was kept."""

    def pids(self) -> Iterable[int]:
        """Of whom something is kept; who comes or goes meanwhile may be missed, or be there twice."""


class Members:
    """Membership in a map of the kernel's: a fork adds to it, an end takes away."""

    def __init__(self, kept: MemberMap) -> None:
        self._kept = kept
        self._missed = 0

    def watch(self, root: Identity, tree: int) -> None:
        """Takes in a process and all that descends from it. Raises PortwatchError if it has ended."""
        descend(root, lambda one: self._join(one, tree))

    def find_missed(self, missed: int) -> None:
        """Takes in the children of members that the kernel had no room for, of which it counts so many.

        Where there is no room yet, the next call looks again; whose parents have ended, it does not find.
        """
        if missed == self._missed:
            return
        try:
            while sum(self._join_ancestors(pid) for pid in procfs.pids()):
                pass  # those who were born meanwhile
        except PortwatchError as error:
            log.warning("%s", error)
        else:
            self._missed = missed

    def unwatch(self, tree: int) -> None:
        """Forgets a tree; those who are born meanwhile, too."""
        while members := {
            (pid, *member)
            for pid in islice(self._kept.pids(), _ROOM)
            if (member := self._kept.get(pid)) and member[1] & tree
        }:
            for pid, start, trees in members:
                if trees == tree:
                    self._kept.remove(pid)
                else:
                    self._kept.put(pid, start, trees & ~tree)

    def of(self, *processes: Process) -> int:
        """The trees that processes belong to, a bit for each."""
        return reduce(or_, map(self._of, map(identity_of, processes)), 0)

    def _of(self, one: Identity) -> int:
        start, trees = self._kept.get(one.pid) or (0, 0)
        return trees if start == clock.ticks(one.start_time) else 0

    def _join(self, one: Identity, trees: int) -> bool:
        self._kept.put(one.pid, clock.ticks(one.start_time), self._of(one) | trees)
        if _is_running(one):
            return True
        self._kept.remove(one.pid)  # the kernel has told of its end before we put it in
        return False

    def _join_ancestors(self, pid: int) -> int:
        """Has a process, and those between, join the trees of its nearest ancestor in any; how many did."""
        found = _identity_if_there(pid)
        between: list[Identity] = []
        for one in _line_of(found) if found else ():
            if trees := self._of(one):
                return sum(self._join(member, trees) for member in between)
            between.append(one)
        return 0


class Lineage:
    """Membership as /proc tells it when it is asked for.

    Who descends from whom is settled at birth, so what was found out once stays true,
    whatever becomes of the parents.
    """

    def __init__(self) -> None:
        self._members: dict[Identity, int] = {}
        self._strangers: dict[Identity, None] = {}

    def watch(self, root: Identity, tree: int) -> None:
        """Takes in a process and all that descends from it. Raises PortwatchError if it has ended."""

        def join(one: Identity) -> None:
            self._members[one] = self._members.get(one, 0) | tree

        self._strangers.clear()
        descend(root, join)

    def unwatch(self, tree: int) -> None:
        """Forgets a tree."""
        self._members = {one: trees & ~tree for one, trees in self._members.items() if trees & ~tree}

    def of(self, *processes: Process) -> int:
        """The trees that processes belong to, a bit for each."""
        trees = 0
        if self._members:
            for process in processes:
                trees |= self._of(identity_of(process))
        return trees

    def _of(self, process: Identity) -> int:
        line: list[Identity] = []
        for one in _line_of(process):
            if one in self._members:
                self._members.update(dict.fromkeys(line, self._members[one]))
                return self._members[one]
            if one in self._strangers:
                break
            line.append(one)
        while len(self._strangers) >= _REMEMBERED:
            del self._strangers[next(iter(self._strangers))]
        self._strangers.update(dict.fromkeys(line))
        return 0


def _identity(pid: int) -> Identity:
    return Identity(pid, procfs.stat(pid)[2])


def _is_running(one: Identity) -> bool:
    """Whether it has not ended; also where its parent was not told of that yet."""
    try:
        return _identity(one.pid) == one and not procfs.is_zombie(one.pid)
    except procfs.UNREADABLE:
        return False


def _identity_if_there(pid: int) -> Identity | None:
    try:
        return _identity(pid)
    except procfs.UNREADABLE:
        return None


def _line_of(process: Identity) -> Iterator[Identity]:
    """A process, whether or not it has ended, and its ancestors."""
    yield process
    for pid, _, start_time in islice(procfs.line_of(*process), 1, None):
        yield Identity(pid, start_time)
