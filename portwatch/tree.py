"""Process trees: a root, and all that descends from it.

Where the kernel tells of forks, it keeps the members itself (Members); else /proc is asked when
something happens (Lineage), as far as it can tell.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from itertools import islice
from operator import or_
from typing import NamedTuple, Protocol

from portwatch import clock, procfs
from portwatch.errors import PortwatchError, WrongUse
from portwatch.model import Listener, Process
from portwatch.only import Only

log = logging.getLogger("portwatch")

MOST = 64
"""Trees at once: each has a bit."""
NO_ROOM = "there is no room for more processes in the watched trees: watch fewer"
_ROOM = 65536
"""For members in the kernel. A pass over them begins anew whenever the one that it stands at ends."""
_REMEMBERED = 4096
_ALL = (1 << MOST) - 1
_WANTED, _UNWANTED = 1, 2


class Identity(NamedTuple):
    """A process, told from a later one of the same pid by its start."""

    pid: int
    start_time: int


def root_at(pid: int) -> Identity:
    """The process of that pid. Raises WrongUse if there is none, or if it is a thread's number."""
    try:
        leader = procfs.thread_group(pid)
        if leader != pid:
            raise WrongUse(f"{pid} is a thread of process {leader}: say {leader}")
        return _identity(pid)
    except procfs.UNREADABLE:
        raise WrongUse(f"there is no process {pid}, or not for us to see") from None


def identity_of(process: Process) -> Identity:
    """What tells a process from a later one of its pid."""
    return Identity(process.pid, process.start_time or 0)


def admitting(pids: Only[int], engine: str) -> Callable[..., bool]:
    """Whether what some processes hold is of the trees of these, as far as /proc tells it now.

    Raises PortwatchError where a root is not there, or where the engine knows it by another pid than we.
    """
    if pids != Only() and engine != "poll":  # which has its pids from /proc, as we have ours
        procfs.require_all_processes()
    lineage = Lineage()
    for tree, roots in ((_WANTED, pids.wanted), (_UNWANTED, pids.unwanted)):
        for pid in roots:
            lineage.watch(root_at(pid), tree)

    def admits(*processes: Process) -> bool:
        trees = lineage.of(*processes)
        return not trees & _UNWANTED and (bool(trees) or not pids.wanted)

    return admits


def of_trees(pids: Only[int], listeners: Iterable[Listener], engine: str) -> list[Listener]:
    """Those that these trees hold now. Raises PortwatchError as `admitting` does."""
    admits = admitting(pids, engine)
    return [one for one in listeners if admits(*one.holders)]


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

    def put(self, pid: int, start: int, trees: int, *, is_new: bool) -> bool:
        """Keeps this of it; False if `is_new` is not so any more. Raises PortwatchError if there is no room."""

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
        _assert_there(root)
        self._join(root, tree)
        self._take_in_descendants(tree)

    def find_missed(self, missed: int) -> None:
        """Puts right what the kernel could not keep up with: forks and ends, of which it counts so many.

        Where there is no room yet, the next call looks again; whose parents have ended, it does not find.
        """
        if missed == self._missed:
            return
        for pid, start, _ in self._all():
            self._forget_if_ended(pid, start)
        try:
            self._take_in_descendants(_ALL)
        except PortwatchError as error:
            log.warning("%s", error)
        else:
            self._missed = missed

    def unwatch(self, tree: int) -> None:
        """Forgets a tree; those who are born meanwhile, too."""
        while members := [pid for pid, _, trees in self._all() if trees & tree]:
            for pid in members:
                self._leave(pid, tree)

    def of(self, *processes: Process) -> int:
        """The trees that processes belong to, a bit for each."""
        return reduce(or_, map(self._of, map(identity_of, processes)), 0)

    def _all(self) -> list[tuple[int, int, int]]:
        """Pid, start and trees of each, before any of them is removed."""
        return [(pid, *kept) for pid in islice(self._kept.pids(), _ROOM) if (kept := self._kept.get(pid))]

    def _of(self, one: Identity) -> int:
        start, trees = self._kept.get(one.pid) or (0, 0)
        return trees if start == clock.ticks(one.start_time) else 0

    def _take_in_descendants(self, trees: int) -> None:
        """Has who descends from members of any of these trees join them, until that is news of nobody."""
        while self._pass_over_processes(trees):
            pass

    def _pass_over_processes(self, wanted: int) -> bool:
        """Whether anybody was news."""
        strangers: set[Identity] = set()
        is_news = False
        for found in filter(None, map(_identity_if_there, procfs.pids())):
            line: list[Identity] = []
            trees = 0
            for one in _line_of(found):
                if one in strangers or (trees := self._of(one) & wanted):
                    break
                line.append(one)
            if not trees:
                strangers.update(line)
                continue
            # From the top, and at once: whom a member forks from then on, the kernel takes in itself.
            for one in reversed(line):
                is_news |= self._join(one, trees)
        return is_news

    def _join(self, one: Identity, trees: int) -> bool:
        """Whether it is in by now; else it has ended."""
        start = clock.ticks(one.start_time)
        while True:  # until nobody has come in between: a program of the kernel's, at a fork or an end
            kept = self._kept.get(one.pid)
            before = kept[1] if kept and kept[0] == start else 0
            if self._kept.put(one.pid, start, before | trees, is_new=kept is None):
                break
        return not self._forget_if_ended(one.pid, start)

    def _leave(self, pid: int, tree: int) -> None:
        kept = self._kept.get(pid)
        if kept and kept[1] == tree:
            self._kept.remove(pid)
        elif kept:
            start, trees = kept
            self._kept.put(pid, start, trees & ~tree, is_new=False)
            self._forget_if_ended(pid, start)

    def _forget_if_ended(self, pid: int, start: int) -> bool:
        """For who was put in after the kernel had told of its end; whoever has its pid by then stays in."""
        if _is_running(pid, start):
            return False
        if (kept := self._kept.get(pid)) and kept[0] == start:
            self._kept.remove(pid)
        return True


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
        import psutil  # 31 ms, which only those pay who ask for a tree

        psutil.PROCFS_PATH = procfs.root()
        _assert_there(root)
        try:
            pids = [one.pid for one in psutil.Process(root.pid).children(recursive=True)]
        except psutil.Error:
            raise PortwatchError(f"process {root.pid} has ended") from None
        for one in (root, *filter(None, map(_identity_if_there, pids))):
            self._members[one] = self._members.get(one, 0) | tree
        self._strangers.clear()

    def forget_ended(self) -> None:
        """Forgets who has ended: nobody descends from them any more who is not known."""
        self._members = {
            one: trees for one, trees in self._members.items() if _identity_if_there(one.pid) == one
        }

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


def _assert_there(root: Identity) -> None:
    if _identity_if_there(root.pid) != root:
        raise PortwatchError(f"process {root.pid} has ended")


def _is_running(pid: int, start: int) -> bool:
    """Whether it has not ended; also where its parent was not told of that yet."""
    try:
        return clock.ticks(procfs.stat(pid)[2]) == start and not procfs.is_zombie(pid)
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
