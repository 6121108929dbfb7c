"""The union of all subscribers' scopes, in terms that BPF programs can evaluate."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TypeVar

from portwatch.filters.cgroup_filter import CgroupFilter, HasCgroup
from portwatch.model import Process, Socket

ALL_PORTS = (1 << 65_536) - 1

Field = TypeVar("Field", int, frozenset[str], frozenset[int], frozenset[CgroupFilter])


@dataclass(frozen=True, slots=True)
class KernelFilter:
    """Selects the records that reach user space. It may pass too many records, but never too few.

    A field that is None passes everything.
    """

    watched_trees_only: bool = False
    ports: int | None = None
    """A bit mask with one bit per port."""
    protos: frozenset[str] | None = None
    namespaces: frozenset[int] | None = None
    excluded_namespaces: frozenset[int] = frozenset()
    """Used only while `namespaces` is None."""
    cgroups: frozenset[CgroupFilter] | None = None
    """A record must pass at least one of these filters."""

    def __or__(self, other: KernelFilter) -> KernelFilter:
        """Return a filter that passes at least every record that either filter passes."""
        return KernelFilter(
            self.watched_trees_only and other.watched_trees_only,
            _union(self.ports, other.ports),
            _union(self.protos, other.protos),
            _union(self.namespaces, other.namespaces),
            frozenset(
                inode
                for inode in self.excluded_namespaces | other.excluded_namespaces
                if not (self._passes_namespace(inode) or other._passes_namespace(inode))
            ),
            _union(self.cgroups, other.cgroups),
        )

    def passes(self, socket: Socket, trees: int, processes: Collection[Process]) -> bool:
        """Return True if some subscriber may want this socket's events."""
        return (
            (bool(trees) or not self.watched_trees_only)
            and (self.ports is None or bool(self.ports >> socket.port & 1))
            and (self.protos is None or socket.proto in self.protos)
            and self._passes_namespace(socket.netns)
            and self.passes_cgroups(processes)
        )

    def passes_cgroups(self, members: Collection[HasCgroup]) -> bool:
        """Return True if some subscriber may want events of processes in these cgroups."""
        return self.cgroups is None or any(cgroups.may_pass(members) for cgroups in self.cgroups)

    def _passes_namespace(self, inode: int | None) -> bool:
        if self.namespaces is None:
            return inode not in self.excluded_namespaces
        return inode in self.namespaces


UNRESTRICTED = KernelFilter()


def port_bits(ranges: Iterable[tuple[int, int]]) -> int:
    """Return the bit mask of all ports in the ranges, as `KernelFilter.ports` needs it."""
    bits = 0
    for first, last in ranges:
        below = (1 << max(first, 0)) - 1
        bits |= (1 << max(last + 1, 0)) - 1 & ~below
    return bits & ALL_PORTS


def _union(first: Field | None, second: Field | None) -> Field | None:
    return None if first is None or second is None else first | second
