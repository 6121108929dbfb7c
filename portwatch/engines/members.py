"""The processes of watched trees, in a BPF map that the kernel updates at each fork and exit."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import reduce
from itertools import islice
from operator import or_
from typing import Protocol

from portwatch.errors import PortwatchError
from portwatch.linux import clock, procfs
from portwatch.linux.lineage import (
    Identity,
    has_ended,
    identity_at,
    identity_of,
    require_running,
    with_ancestors,
)
from portwatch.model import Process

log = logging.getLogger("portwatch")

NO_ROOM = "the map of watched processes is full: watch fewer process trees"
MAP_ENTRIES = 65536
"""The size of the map. A walk over its keys starts again whenever the key that it stands at is deleted,
so this also bounds a walk."""
_ALL_TREES = (1 << 64) - 1


class MemberMap(Protocol):
    """A BPF map from pid to (start, trees). BPF programs change it at any time."""

    def get(self, pid: int) -> tuple[int, int] | None:
        """Return the entry of a process."""

    def put(self, pid: int, start: int, trees: int, *, is_new: bool) -> bool:
        """Insert the entry if `is_new`, else replace it.

        Return False if the pid has an entry by now, or has none any more. Raise PortwatchError if the map
        is full.
        """

    def remove(self, pid: int) -> None:
        """Delete the entry, if there is one."""

    def pids(self) -> Iterable[int]:
        """Yield every pid. One that is added or deleted meanwhile may be missed or be yielded twice."""


class Members:
    """Tree membership in a BPF map: a fork adds an entry, an exit deletes it."""

    def __init__(self, entries: MemberMap) -> None:
        self._entries = entries
        self._missed = 0

    def watch(self, root: Identity, tree: int) -> None:
        """Add a process and all its descendants. Raise PortwatchError if it has ended."""
        require_running(root)
        self._join(root, tree)
        self._add_descendants(tree)

    def find_missed(self, missed: int) -> None:
        """Repair the map after the kernel missed forks or exits; `missed` counts them since the start.

        If the map is full, the next call tries again. A process whose parents have all ended is not found.
        """
        if missed == self._missed:
            return
        for pid, start, _ in self._all():
            self._remove_if_ended(pid, start)
        try:
            self._add_descendants(_ALL_TREES)
        except PortwatchError as error:
            log.warning("%s", error)
        else:
            self._missed = missed

    def unwatch(self, tree: int) -> None:
        """Drop a tree, including processes that are forked meanwhile."""
        while members := [pid for pid, _, trees in self._all() if trees & tree]:
            for pid in members:
                self._leave(pid, tree)

    def of(self, *processes: Process) -> int:
        """Return the trees that the processes belong to, one bit per tree."""
        return reduce(or_, map(self._of, map(identity_of, processes)), 0)

    def _all(self) -> list[tuple[int, int, int]]:
        """Return pid, start and trees of every member: a list, as deleting would disturb the walk."""
        pids = islice(self._entries.pids(), MAP_ENTRIES)
        return [(pid, *entry) for pid in pids if (entry := self._entries.get(pid))]

    def _of(self, one: Identity) -> int:
        start, trees = self._entries.get(one.pid) or (0, 0)
        return trees if start == clock.ticks(one.start_time) else 0

    def _add_descendants(self, trees: int) -> None:
        """Add every descendant of members of any of these trees, until a pass finds no new one."""
        while self._pass_over_processes(trees):
            pass

    def _pass_over_processes(self, watched: int) -> bool:
        """Return True if a process was added."""
        strangers: set[Identity] = set()
        has_added = False
        for found in filter(None, map(identity_at, procfs.pids())):
            line: list[Identity] = []
            trees = 0
            for one in with_ancestors(found):
                if one in strangers or (trees := self._of(one) & watched):
                    break
                line.append(one)
            if not trees:
                strangers.update(line)
                continue
            # Ancestors first, and at once: from then on the kernel itself adds what they fork.
            for one in reversed(line):
                has_added |= self._join(one, trees)
        return has_added

    def _join(self, one: Identity, trees: int) -> bool:
        """Add a process to trees. Return False if it has ended."""
        start = clock.ticks(one.start_time)
        while True:  # until no BPF program has changed the entry between get and put
            entry = self._entries.get(one.pid)
            before = entry[1] if entry and entry[0] == start else 0
            if self._entries.put(one.pid, start, before | trees, is_new=entry is None):
                break
        return not self._remove_if_ended(one.pid, start)

    def _leave(self, pid: int, tree: int) -> None:
        entry = self._entries.get(pid)
        if entry and entry[1] == tree:
            self._entries.remove(pid)
        elif entry:
            start, trees = entry
            self._entries.put(pid, start, trees & ~tree, is_new=False)
            self._remove_if_ended(pid, start)

    def _remove_if_ended(self, pid: int, start: int) -> bool:
        """Delete an entry that was put after the process's exit; a later process of that pid keeps its own."""
        if not has_ended(pid, start):
            return False
        if (entry := self._entries.get(pid)) and entry[0] == start:
            self._entries.remove(pid)
        return True
