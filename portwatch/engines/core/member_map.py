"""A BPF map of processes, through libbpf."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import byref, c_uint32, c_uint64
from errno import EEXIST, ENOENT

from portwatch.engines.core.libbpf import Libbpf
from portwatch.engines.members import NO_ROOM
from portwatch.errors import PortwatchError

_BPF_NOEXIST, _BPF_EXIST = 1, 2


class _Member(ctypes.Structure):
    _fields_ = (("start", c_uint64), ("trees", c_uint64))


class LibbpfMemberMap:
    """A map of the kernel's, pid to struct member, as portwatch.tree has it."""

    def __init__(self, libbpf: Libbpf, fd: int) -> None:
        self._functions = libbpf.functions
        self._fd = fd

    def get(self, pid: int) -> tuple[int, int] | None:
        """What is kept of a process."""
        found = _Member()
        if self._functions.bpf_map_lookup_elem(self._fd, byref(c_uint32(pid)), byref(found)):
            return None
        return found.start, found.trees

    def put(self, pid: int, start: int, trees: int, *, is_new: bool) -> bool:
        """Keeps this of it; False if `is_new` is not so any more. Raises PortwatchError if there is no room."""
        member = byref(_Member(start, trees))
        flags = _BPF_NOEXIST if is_new else _BPF_EXIST
        result = self._functions.bpf_map_update_elem(self._fd, byref(c_uint32(pid)), member, flags)
        if result and -result not in (EEXIST, ENOENT):
            raise PortwatchError(NO_ROOM)
        return not result

    def remove(self, pid: int) -> None:
        """Keeps nothing of it, and is content if nothing was kept."""
        self._functions.bpf_map_delete_elem(self._fd, byref(c_uint32(pid)))

    def pids(self) -> Iterator[int]:
        """Of whom something is kept."""
        pid, previous = c_uint32(), None
        while not self._functions.bpf_map_get_next_key(self._fd, previous, byref(pid)):
            yield pid.value
            previous = byref(c_uint32(pid.value))
