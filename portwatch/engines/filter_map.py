"""The kernel filter in the form that BPF programs read. The declarations mirror bpf/filter.h."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import replace

from portwatch.filters import KernelFilter
from portwatch.linux import cgroups, containers

(
    FILTER_TREES,
    FILTER_PORTS,
    FILTER_NETNS,
    FILTER_NO_TCP,
    FILTER_NO_UDP,
    FILTER_EXCLUDED_NETNS,
    FILTER_CGROUPS,
) = (1 << bit for bit in range(7))

_NETNS_MAX = 8
_CGROUPS_MAX = 4096


class FilterMap(ctypes.Structure):
    """struct filter of bpf/filter.h, in memory shared with the BPF programs."""

    _fields_ = (
        ("ports", ctypes.c_uint64 * 1024),
        ("namespaces", ctypes.c_uint32 * _NETNS_MAX),
        ("generation", ctypes.c_uint32),
        ("excluded_cgroups", ctypes.c_uint64 * _CGROUPS_MAX),
    )

    def load(self, kernel_filter: KernelFilter) -> None:
        """Write the ports and namespaces of a filter from `supported`, and clear the excluded cgroups."""
        if kernel_filter.ports is not None:
            size = ctypes.sizeof(self.ports)
            ctypes.memmove(self.ports, kernel_filter.ports.to_bytes(size, "little"), size)
        namespaces = (
            kernel_filter.excluded_namespaces if kernel_filter.namespaces is None else kernel_filter.namespaces
        )
        self.namespaces[:] = [*namespaces, *[0] * (_NETNS_MAX - len(namespaces))]
        self.generation += 1
        ctypes.memset(self.excluded_cgroups, 0, ctypes.sizeof(self.excluded_cgroups))

    def exclude_cgroups(self, kernel_filter: KernelFilter, ids: Iterable[int]) -> None:
        """Exclude each cgroup in `ids` that no subscriber wants. The programs then send no records from it.

        A filter matches the paths of cgroups, but the programs know only ids. So the programs send the first
        record from each cgroup, and this method decides whether they send more records.
        """
        for cgroup_id in ids:
            path = cgroups.path_of(cgroup_id)
            if path and not kernel_filter.passes_cgroups([containers.from_cgroup_path(path)]):
                self.excluded_cgroups[cgroup_id % _CGROUPS_MAX] = cgroup_id


def supported(wanted: KernelFilter, *, has_marks: bool) -> KernelFilter:
    """Return the narrowest filter that the programs can apply and that passes everything that `wanted` passes.

    To filter by process tree or cgroup, the programs need a mark on each socket (`has_marks`). Any process may
    close the socket, and only the mark tells which tree or cgroup opened it.
    """
    # If cgroup v1 is mounted as well as v2, the id of a v2 cgroup does not tell which cgroup a process is in.
    cgroup_filters = wanted.cgroups if has_marks and cgroups.is_v2_only() else None
    narrowest = replace(
        wanted, watched_trees_only=wanted.watched_trees_only and has_marks, cgroups=cgroup_filters
    )
    fits = max(len(wanted.namespaces or ()), len(wanted.excluded_namespaces)) <= _NETNS_MAX
    return narrowest if fits else replace(narrowest, namespaces=None, excluded_namespaces=frozenset())


def flags(kernel_filter: KernelFilter) -> int:
    """Return the parts of struct filter that apply, as bits of enum filter_flag."""
    protos = kernel_filter.protos
    return (
        FILTER_TREES * kernel_filter.watched_trees_only
        | FILTER_PORTS * (kernel_filter.ports is not None)
        | FILTER_NETNS * (kernel_filter.namespaces is not None)
        | FILTER_EXCLUDED_NETNS * bool(kernel_filter.excluded_namespaces)
        | FILTER_NO_TCP * (protos is not None and "tcp" not in protos)
        | FILTER_NO_UDP * (protos is not None and "udp" not in protos)
        | FILTER_CGROUPS * (kernel_filter.cgroups is not None)
    )
