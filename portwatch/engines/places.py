"""A Width as BPF programs have it: bpf/places.h in Python."""

from __future__ import annotations

import ctypes
from dataclasses import replace

from portwatch.width import Width

OF_TREES, OF_PORTS, OF_NAMESPACES, NOT_TCP, NOT_UDP, NOT_NAMESPACES = (1 << bit for bit in range(6))

_NAMESPACES_MAX = 8


class Places(ctypes.Structure):
    """struct places, in memory that programs read."""

    _fields_ = (("ports", ctypes.c_uint64 * 1024), ("namespaces", ctypes.c_uint32 * _NAMESPACES_MAX))

    def fill(self, width: Width) -> None:
        """Says what a width holds, of which `attainable` said that it can be said."""
        if width.ports is not None:
            size = ctypes.sizeof(self.ports)
            ctypes.memmove(self.ports, width.ports.to_bytes(size, "little"), size)
        listed = width.without if width.namespaces is None else width.namespaces
        self.namespaces[:] = [*listed, *[0] * (_NAMESPACES_MAX - len(listed))]


def attainable(width: Width, *, trees: bool) -> Width:
    """The least that the programs can keep to, which keep to trees only if they know these."""
    attained = replace(width, of_trees=width.of_trees and trees)
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
    )
