"""A Width as BPF programs have it: bpf/places.h in Python.

Which cgroups lie outside of it they are told when somebody there has done something.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import replace

from portwatch import cgroups
from portwatch.identity import place_at
from portwatch.width import Width

OF_TREES, OF_PORTS, OF_NAMESPACES, NOT_TCP, NOT_UDP, NOT_NAMESPACES, NOT_CGROUPS = (
    1 << bit for bit in range(7)
)

_NAMESPACES_MAX = 8
_CGROUPS_MAX = 4096


class Places(ctypes.Structure):
    """struct places, in memory that programs read."""

    _fields_ = (
        ("ports", ctypes.c_uint64 * 1024),
        ("namespaces", ctypes.c_uint32 * _NAMESPACES_MAX),
        ("generation", ctypes.c_uint32),
        ("cgroups", ctypes.c_uint64 * _CGROUPS_MAX),
    )

    def fill(self, width: Width) -> None:
        """Says what a width holds, of which `attainable` said that it can be said."""
        if width.ports is not None:
            size = ctypes.sizeof(self.ports)
            ctypes.memmove(self.ports, width.ports.to_bytes(size, "little"), size)
        listed = width.without if width.namespaces is None else width.namespaces
        self.namespaces[:] = [*listed, *[0] * (_NAMESPACES_MAX - len(listed))]
        self.generation += 1
        ctypes.memset(self.cgroups, 0, ctypes.sizeof(self.cgroups))

    def leave_out(self, width: Width, found: Iterable[int]) -> None:
        """Says of those cgroups, by their ids, that they lie outside of a width which do."""
        for cgroup in found:
            path = cgroups.path_of(cgroup)
            if path and not width.has_home([place_at(path)]):
                self.cgroups[cgroup % _CGROUPS_MAX] = cgroup


def attainable(width: Width, *, marks: bool) -> Width:
    """The least that the programs can keep to: to trees and cgroups only with `marks`, which sockets bear."""
    # With hierarchies of v1, an id of v2 does not settle where its processes live.
    homes = width.homes if marks and cgroups.are_all_v2() else None
    attained = replace(width, of_trees=width.of_trees and marks, homes=homes)
    fits = max(len(width.namespaces or ()), len(width.without)) <= _NAMESPACES_MAX
    return attained if fits else replace(attained, namespaces=None, without=frozenset())


def narrow(width: Width) -> int:
    """In which ways a width is less than everything, of enum narrow."""
    return (
        OF_TREES * width.of_trees
        | OF_PORTS * (width.ports is not None)
        | OF_NAMESPACES * (width.namespaces is not None)
        | NOT_NAMESPACES * bool(width.without)
        | NOT_TCP * (width.protos is not None and "tcp" not in width.protos)
        | NOT_UDP * (width.protos is not None and "udp" not in width.protos)
        | NOT_CGROUPS * (width.homes is not None)
    )
