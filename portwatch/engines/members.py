"""The processes of watched trees, in a map that BPF programs update at each fork and exit."""

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
"""Flags of a BPF map update. BPF_NOEXIST allows only an insertion, and BPF_EXIST only a replacement."""

log = logging.getLogger("portwatch")

NO_ROOM = "the map of watched processes is full: watch fewer process trees"
MAP_ENTRIES = 65536
"""The capacity of the map `members` in bpf/, and the maximum number of keys that a walk over the map reads.

If the kernel deletes the key that a walk has reached, the walk starts again at the first key. So without a
maximum, a walk might never end."""
_ALL_TREES = (1 << 64) - 1


class MemberMap(Protocol):
    """A BPF map from pid to (start, trees). BPF programs may change it at any time.

    `start` is the start time of the process in clock ticks. `trees` has one bit for each tree.
    """

    def get(self, pid: int) -> tuple[int, int] | None:
        """Return the entry of a process, or None."""

    def put(self, pid: int, start: int, trees: int, *, is_new: bool) -> bool:
        """Insert the entry of a process if `is_new` is true, otherwise replace it.

        If a BPF program has inserted or deleted the entry meanwhile, change nothing and return False. Raise
        PortwatchError if the map is full.
        """

    def remove(self, pid: int) -> None:
        """Delete the entry of a process, if it exists."""

    def pids(self) -> Iterable[int]:
        """Yield the pid of every entry. If entries change meanwhile, their pids may be missing or repeated."""


class Members:
    """Membership in process trees, kept in a BPF map. A fork adds an entry, and an exit deletes the entry."""

    def __init__(self, entries: MemberMap) -> None:
        self._entries = entries
        self._missed = 0

    def watch(self, root: Identity, tree: int) -> None:
        """Add `root` and all its descendants to a tree. Raise PortwatchError if `root` has ended."""
        require_running(root)
        self._join(root, tree)
        self._add_descendants(tree)

    def find_missed(self, missed: int) -> None:
        """Repair the map if forks or exits have been missed since the last call.

        `missed` is the total number of missed forks and exits. If the map is full, the next call tries again.
        A process whose fork was missed is found only if one of its current ancestors is a member.
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
        """Remove all members of a tree. Members may fork meanwhile, so repeat until no member is left."""
        while members := [pid for pid, _, trees in self._all() if trees & tree]:
            for pid in members:
                self._leave(pid, tree)

    def of(self, *processes: Process) -> int:
        """Return the trees to which at least one of the processes belongs, one bit per tree."""
        return reduce(or_, map(self._of, map(identity_of, processes)), 0)

    def _all(self) -> list[tuple[int, int, int]]:
        """Return pid, start and trees of every member.

        The result is a list, because the caller may delete entries, which would disturb a walk in progress.
        """
        pids = islice(self._entries.pids(), MAP_ENTRIES)
        return [(pid, *entry) for pid in pids if (entry := self._entries.get(pid))]

    def _of(self, process: Identity) -> int:
        start, trees = self._entries.get(process.pid) or (0, 0)
        return trees if start == clock.ticks(process.start_time) else 0

    def _add_descendants(self, trees: int) -> None:
        """For each tree in `trees`, add all descendants of its members to the tree."""
        while self._add_descendants_once(trees):  # repeat until a pass adds no process
            pass

    def _add_descendants_once(self, watched: int) -> bool:
        """Add each process that has a member as ancestor. Return True if any process was added."""
        non_members: set[Identity] = set()
        has_added = False
        for process in filter(None, map(identity_at, procfs.pids())):
            path: list[Identity] = []  # the process and its ancestors below the nearest member
            trees = 0
            for ancestor in with_ancestors(process):
                if ancestor in non_members or (trees := self._of(ancestor) & watched):
                    break
                path.append(ancestor)
            if not trees:
                non_members.update(path)
                continue
            # Add ancestors first. Once a process is a member, the BPF programs add each child that it forks.
            for descendant in reversed(path):
                has_added |= self._join(descendant, trees)
        return has_added

    def _join(self, process: Identity, trees: int) -> bool:
        """Add a process to trees. Return False if the process has ended."""
        start = clock.ticks(process.start_time)
        while True:  # repeat if a BPF program changes the entry between get and put
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
        """Delete the entry of a process if it has ended. Return True if it has ended.

        BPF programs delete the entry of a process when it exits. If an entry is put after the exit, only this
        method can delete that entry. The entry of a later process with the same pid is kept.
        """
        if not has_ended(pid, start):
            return False
        if (entry := self._entries.get(pid)) and entry[0] == start:
            self._entries.remove(pid)
        return True
