"""A kernel filter in the form that BPF programs read: bpf/filter.h in Python."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import replace

from portwatch.filters import KernelFilter
from portwatch.linux import cgroups, containers

TREES, PORTS, NETNS, NO_TCP, NO_UDP, EXCLUDED_NETNS, CGROUPS = (1 << bit for bit in range(7))

_NETNS_MAX = 8
_CGROUPS_MAX = 4096


class FilterMap(ctypes.Structure):
    """struct filter, in memory shared with the programs."""

    _fields_ = (
        ("ports", ctypes.c_uint64 * 1024),
        ("namespaces", ctypes.c_uint32 * _NETNS_MAX),
        ("generation", ctypes.c_uint32),
        ("excluded_cgroups", ctypes.c_uint64 * _CGROUPS_MAX),
    )

    def load(self, kernel_filter: KernelFilter) -> None:
        """Write a filter that `supported` has returned."""
        if kernel_filter.ports is not None:
            size = ctypes.sizeof(self.ports)
            ctypes.memmove(self.ports, kernel_filter.ports.to_bytes(size, "little"), size)
        listed = (
            kernel_filter.excluded_namespaces if kernel_filter.namespaces is None else kernel_filter.namespaces
        )
        self.namespaces[:] = [*listed, *[0] * (_NETNS_MAX - len(listed))]
        self.generation += 1
        ctypes.memset(self.excluded_cgroups, 0, ctypes.sizeof(self.excluded_cgroups))

    def exclude_cgroups(self, kernel_filter: KernelFilter, ids: Iterable[int]) -> None:
        """Exclude those of these cgroups that no subscriber wants: the next record from there is not sent.

        Only a cgroup's path tells whether it is wanted, so each is judged here when its first record arrives.
        """
        for cgroup_id in ids:
            path = cgroups.path_of(cgroup_id)
            if path and not kernel_filter.passes_cgroups([containers.from_cgroup_path(path)]):
                self.excluded_cgroups[cgroup_id % _CGROUPS_MAX] = cgroup_id


def supported(wanted: KernelFilter, *, has_marks: bool) -> KernelFilter:
    """Return the narrowest filter that the programs can apply and that passes all of `wanted`.

    Trees and cgroups need marks in sockets: a close runs in any process, and only the mark tells who opened.
    """
    # With cgroup v1 beside v2, the id of a v2 cgroup does not tell which cgroup a process is in.
    cgroup_filters = wanted.cgroups if has_marks and cgroups.is_v2_only() else None
    found = replace(wanted, watched_trees_only=wanted.watched_trees_only and has_marks, cgroups=cgroup_filters)
    fits = max(len(wanted.namespaces or ()), len(wanted.excluded_namespaces)) <= _NETNS_MAX
    return found if fits else replace(found, namespaces=None, excluded_namespaces=frozenset())


def flags(kernel_filter: KernelFilter) -> int:
    """Return which parts of struct filter apply: enum filter_flag."""
    protos = kernel_filter.protos
    return (
        TREES * kernel_filter.watched_trees_only
        | PORTS * (kernel_filter.ports is not None)
        | NETNS * (kernel_filter.namespaces is not None)
        | EXCLUDED_NETNS * bool(kernel_filter.excluded_namespaces)
        | NO_TCP * (protos is not None and "tcp" not in protos)
        | NO_UDP * (protos is not None and "udp" not in protos)
        | CGROUPS * (kernel_filter.cgroups is not None)
    )
