"""Access through libbpf to the map of processes in watched trees."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import byref, c_uint32, c_uint64
from errno import EEXIST, ENOENT

from portwatch.engines.core.libbpf import Libbpf
from portwatch.engines.members import BPF_EXIST, BPF_NOEXIST, NO_ROOM
from portwatch.errors import PortwatchError


class _Member(ctypes.Structure):
    """struct member of bpf/core.bpf.c, the value type of the map `members`."""

    _fields_ = (("start", c_uint64), ("trees", c_uint64))


class LibbpfMemberMap:
    """The implementation of `portwatch.engines.members.MemberMap` for libbpf."""

    def __init__(self, libbpf: Libbpf, fd: int) -> None:
        self._functions = libbpf.functions
        self._fd = fd

    def get(self, pid: int) -> tuple[int, int] | None:
        """Return the entry of a process, or None."""
        member = _Member()
        if self._functions.bpf_map_lookup_elem(self._fd, byref(c_uint32(pid)), byref(member)):
            return None
        return member.start, member.trees

    def put(self, pid: int, start: int, trees: int, *, is_new: bool) -> bool:
        """Insert or replace the entry. Return False if a BPF program has inserted or deleted it meanwhile."""
        member = byref(_Member(start, trees))
        flags = BPF_NOEXIST if is_new else BPF_EXIST
        result = self._functions.bpf_map_update_elem(self._fd, byref(c_uint32(pid)), member, flags)
        if result and -result not in (EEXIST, ENOENT):
            raise PortwatchError(NO_ROOM)
        return not result

    def remove(self, pid: int) -> None:
        """Delete the entry of a process, if it exists."""
        self._functions.bpf_map_delete_elem(self._fd, byref(c_uint32(pid)))

    def pids(self) -> Iterator[int]:
        """Yield the pid of every entry."""
        pid, previous = c_uint32(), None
        while not self._functions.bpf_map_get_next_key(self._fd, previous, byref(pid)):
            yield pid.value
            previous = byref(c_uint32(pid.value))
