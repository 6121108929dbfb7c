"""The processes of watched trees, in a map of bcc's."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from contextlib import suppress
from errno import EEXIST, ENOENT
from typing import Any

from portwatch.engines.members import NO_ROOM
from portwatch.errors import PortwatchError

_BPF_NOEXIST, _BPF_EXIST = 1, 2


class BccMemberMap:
    """Pid to struct member, as portwatch.tree has it."""

    def __init__(self, table: Any) -> None:
        self._table = table
        self._library = sys.modules[type(table).__module__].lib

    def get(self, pid: int) -> tuple[int, int] | None:
        """What is kept of a process."""
        try:
            found = self._table[self._table.Key(pid)]
        except KeyError:
            return None
        return found.start, found.trees

    def put(self, pid: int, start: int, trees: int, *, is_new: bool) -> bool:
        """Keeps this of it; False if `is_new` is not so any more. Raises PortwatchError if there is no room."""
        key, leaf = self._table.Key(pid), self._table.Leaf(start, trees)
        flags = _BPF_NOEXIST if is_new else _BPF_EXIST
        if not self._library.bpf_update_elem(self._table.map_fd, ctypes.byref(key), ctypes.byref(leaf), flags):
            return True
        if ctypes.get_errno() not in (EEXIST, ENOENT):
            raise PortwatchError(NO_ROOM)
        return False

    def remove(self, pid: int) -> None:
        """Keeps nothing of it, and is content if nothing was kept."""
        with suppress(KeyError):
            del self._table[self._table.Key(pid)]

    def pids(self) -> Iterable[int]:
        """Of whom something is kept."""
        return (key.value for key in self._table)
