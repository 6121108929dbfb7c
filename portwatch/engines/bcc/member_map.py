"""Access through bcc to the map of processes in watched trees."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from contextlib import suppress
from errno import EEXIST, ENOENT
from typing import Any

from portwatch.engines.members import BPF_EXIST, BPF_NOEXIST, NO_ROOM
from portwatch.errors import PortwatchError


class BccMemberMap:
    """The implementation of `portwatch.engines.members.MemberMap` for bcc."""

    def __init__(self, table: Any) -> None:
        self._table = table
        self._library = sys.modules[type(table).__module__].lib

    def get(self, pid: int) -> tuple[int, int] | None:
        """Return the entry of a process, or None."""
        try:
            member = self._table[self._table.Key(pid)]
        except KeyError:
            return None
        return member.start, member.trees

    def put(self, pid: int, start: int, trees: int, *, is_new: bool) -> bool:
        """Insert or replace the entry. Return False if a BPF program has inserted or deleted it meanwhile."""
        key, leaf = self._table.Key(pid), self._table.Leaf(start, trees)
        flags = BPF_NOEXIST if is_new else BPF_EXIST
        if not self._library.bpf_update_elem(self._table.map_fd, ctypes.byref(key), ctypes.byref(leaf), flags):
            return True
        if ctypes.get_errno() not in (EEXIST, ENOENT):
            raise PortwatchError(NO_ROOM)
        return False

    def remove(self, pid: int) -> None:
        """Delete the entry of a process, if it exists."""
        with suppress(KeyError):
            del self._table[self._table.Key(pid)]

    def pids(self) -> Iterable[int]:
        """Yield the pid of every entry."""
        return (key.value for key in self._table)
