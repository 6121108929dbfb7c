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

BPF_NOEXIST, BPF_EXIST = 1, 2
"""Flags of an update of a BPF map: insert only, or replace only."""

log = logging.getLogger("portwatch")

NO_ROOM = "the map of watched processes is full: watch fewer process trees"
MAP_ENTRIES = 65536
"""The size of the map in bpf/. It also bounds a walk over the keys, which starts again at the first key
whenever the key that it has reached is deleted."""
_ALL_TREES = (1 << 64) - 1


class MemberMap(Protocol):
    """A BPF map from pid to (start, trees). BPF programs change it at any time."""

    def get(self, pid: int) -> tuple[int, int] | None:
        """Return the entry of a process, or None."""

    def put(self, pid: int, start: int, trees: int, *, is_new: bool) -> bool:
        """Insert the entry if `is_new`, else replace it.

        Return False if a BPF program has meanwhile inserted or deleted the entry. Raise PortwatchError if the
        map is full.
        """

    def remove(self, pid: int) -> None:
        """Delete the entry, if there is one."""

    def pids(self) -> Iterable[int]:
        """Yield every pid. Entries that change during the walk may be missed or yielded twice."""


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
        """Drop a tree. Repeats until no member is left, because members may fork meanwhile."""
        while members := [pid for pid, _, trees in self._all() if trees & tree]:
            for pid in members:
                self._leave(pid, tree)

    def of(self, *processes: Process) -> int:
        """Return the trees that the processes belong to, one bit per tree."""
        return reduce(or_, map(self._of, map(identity_of, processes)), 0)

    def _all(self) -> list[tuple[int, int, int]]:
        """Return pid, start and trees of every member. A list, because deletions disturb the walk."""
        pids = islice(self._entries.pids(), MAP_ENTRIES)
        return [(pid, *entry) for pid in pids if (entry := self._entries.get(pid))]

    def _of(self, process: Identity) -> int:
        start, trees = self._entries.get(process.pid) or (0, 0)
        return trees if start == clock.ticks(process.start_time) else 0

    def _add_descendants(self, trees: int) -> None:
        """Add all descendants of the members of any of these trees."""
        while self._add_descendants_once(trees):  # until a pass finds no new one
            pass

    def _add_descendants_once(self, watched: int) -> bool:
        """Look at each process once. Return True if one was added."""
        non_members: set[Identity] = set()
        has_added = False
        for process in filter(None, map(identity_at, procfs.pids())):
            path: list[Identity] = []  # from the process up to below its nearest member
            trees = 0
            for ancestor in with_ancestors(process):
                if ancestor in non_members or (trees := self._of(ancestor) & watched):
                    break
                path.append(ancestor)
            if not trees:
                non_members.update(path)
                continue
            # Ancestors first: once a process is a member, the kernel adds its later children.
            for descendant in reversed(path):
                has_added |= self._join(descendant, trees)
        return has_added

    def _join(self, process: Identity, trees: int) -> bool:
        """Add a process to trees. Return False if it has ended."""
        start = clock.ticks(process.start_time)
        while True:  # until no BPF program changes the entry between get and put
            entry = self._entries.get(process.pid)
            before = entry[1] if entry and entry[0] == start else 0
            if self._entries.put(process.pid, start, before | trees, is_new=entry is None):
                break
        return not self._remove_if_ended(process.pid, start)

    def _leave(self, pid: int, tree: int) -> None:
        entry = self._entries.get(pid)
        if entry and entry[1] == tree:
            self._entries.remove(pid)
        elif entry:
            start, trees = entry
            self._entries.put(pid, start, trees & ~tree, is_new=False)
            self._remove_if_ended(pid, start)

    def _remove_if_ended(self, pid: int, start: int) -> bool:
        """Delete the entry of a process that has ended: put after its exit, the kernel would never delete it.

        A later process with the same pid keeps its own entry.
        """
        if not has_ended(pid, start):
            return False
        if (entry := self._entries.get(pid)) and entry[0] == start:
            self._entries.remove(pid)
        return True
