"""How much of all that happens anybody wants to hear of, as a socket tells it, and whose cgroup."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TypeVar

from portwatch.homes import Home, Homes
from portwatch.model import Process, Socket

ALL_PORTS = (1 << 65_536) - 1
PROTOS = frozenset(("tcp", "udp"))

Some = TypeVar("Some", int, frozenset[str], frozenset[int], frozenset[Homes])


@dataclass(frozen=True, slots=True)
class Width:
    """What lies outside concerns nobody; what lies within may. Where None is said, nothing is left out."""

    of_trees: bool = False
    """Nothing but what concerns watched trees."""
    ports: int | None = None
    """A bit for each."""
    protos: frozenset[str] | None = None
    namespaces: frozenset[int] | None = None
    without: frozenset[int] = frozenset()
    """Of all namespaces but these, where all are said."""
    homes: frozenset[Homes] | None = None
    """Of each somebody wants what it holds."""

    def __or__(self, other: Width) -> Width:
        """What holds both: of each field what either wants, so it can hold more."""
        return Width(
            self.of_trees and other.of_trees,
            _either(self.ports, other.ports),
            _either(self.protos, other.protos),
            _either(self.namespaces, other.namespaces),
            frozenset(
                one
                for one in self.without | other.without
                if not (self._has_namespace(one) or other._has_namespace(one))
            ),
            _either(self.homes, other.homes),
        )

    def holds(self, socket: Socket, trees: int, processes: Collection[Process]) -> bool:
        """Whether what happens to a socket, and concerns these trees and processes, lies within."""
        return (
            (bool(trees) or not self.of_trees)
            and (self.ports is None or bool(self.ports >> socket.port & 1))
            and (self.protos is None or socket.proto in self.protos)
            and self._has_namespace(socket.netns)
            and self.has_home(processes)
        )

    def has_home(self, homes: Collection[Home]) -> bool:
        """Whether somebody wants to hear of who lives in these."""
        return self.homes is None or any(wanted.may_hold(homes) for wanted in self.homes)

    def _has_namespace(self, inode: int | None) -> bool:
        return inode not in self.without if self.namespaces is None else inode in self.namespaces


EVERYTHING = Width()


def bits(ranges: Iterable[tuple[int, int]]) -> int:
    """Ports as a Width has them."""
    found = 0
    for first, last in ranges:
        below = (1 << max(first, 0)) - 1
        found |= (1 << max(last + 1, 0)) - 1 & ~below
    return found & ALL_PORTS


def _either(one: Some | None, other: Some | None) -> Some | None:
    return None if one is None or other is None else one | other
