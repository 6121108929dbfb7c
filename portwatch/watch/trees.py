"""The bits of the process trees that subscribers watch, and a filter by the process trees in /proc."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from portwatch.errors import PortwatchError
from portwatch.event import Listener
from portwatch.filters.filter import Filter
from portwatch.linux import procfs
from portwatch.linux.lineage import Identity, Lineage, root_at
from portwatch.model import Process

TREES_MAX = 64
"""Maximum number of trees watched at once, because a record has one bit for each tree."""
_INCLUDED, _EXCLUDED = 1, 2  # bits for `Lineage`


class TreeBits:
    """Assigns a bit to each process tree while at least one subscriber uses it."""

    def __init__(self) -> None:
        self._users: dict[Identity, int] = {}
        self._bits: dict[Identity, int] = {}
        self._free = deque(1 << index for index in range(TREES_MAX))
        """The bit released longest ago comes first, because late records may have bits that were released
        recently."""

    def acquire(self, root: Identity) -> tuple[int, bool]:
        """Return the bit of a tree, and whether this is its first user. Raise PortwatchError at the limit."""
        is_first = root not in self._bits
        if is_first:
            if not self._free:
                raise PortwatchError(
                    f"the limit of {TREES_MAX} watched process trees is reached: remove one first (remove_pid)"
                )
            self._bits[root], self._users[root] = self._free.popleft(), 0
        self._users[root] += 1
        return self._bits[root], is_first

    def release(self, root: Identity) -> tuple[int, bool]:
        """Return the bit of a tree, and whether this was its last user."""
        self._users[root] -= 1
        if self._users[root]:
            return self._bits[root], False
        del self._users[root]
        self._free.append(self._bits[root])
        return self._bits.pop(root), True


def tree_predicate(pids: Filter[int], engine: str) -> Callable[..., bool]:
    """Return a function that tells whether the holders of a socket pass a filter by process tree.

    The trees are those that /proc shows now. Raise PortwatchError if a root has ended, or if the engine's pids
    are not those of our /proc.
    """
    if pids != Filter() and engine != "poll":  # poll reads its pids from the same /proc
        procfs.require_kernel_pids()
    lineage = Lineage()
    for tree, roots in ((_INCLUDED, pids.include), (_EXCLUDED, pids.exclude)):
        for pid in roots:
            lineage.watch(root_at(pid), tree)

    def passes(*processes: Process) -> bool:
        trees = lineage.of(*processes)
        return not trees & _EXCLUDED and (bool(trees) or not pids.include)

    return passes


def held_by_trees(pids: Filter[int], listeners: Iterable[Listener], engine: str) -> list[Listener]:
    """Return the listeners whose holders pass a filter by tree. Raise like `tree_predicate`."""
    passes = tree_predicate(pids, engine)
    return [listener for listener in listeners if passes(*listener.holders)]
