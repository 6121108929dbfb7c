"""The processes of watched trees, in a map of bcc's."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from portwatch.errors import PortwatchError
from portwatch.tree import NO_ROOM


class MemberTable:
    """Pid to struct member, as portwatch.tree has it."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def get(self, pid: int) -> tuple[int, int] | None:
        """What is kept of a process."""
        try:
            found = self._table[self._table.Key(pid)]
        except KeyError:
            return None
        return found.start, found.trees

    def put(self, pid: int, start: int, trees: int) -> None:
        """Keeps this of it. Raises PortwatchError if there is no room."""
        try:
            self._table[self._table.Key(pid)] = self._table.Leaf(start, trees)
        except Exception as error:  # bcc raises nothing more precise
            raise PortwatchError(NO_ROOM) from error

    def remove(self, pid: int) -> None:
        """Keeps nothing of it, and is content if nothing was kept."""
        with suppress(KeyError):
            del self._table[self._table.Key(pid)]

    def pids(self) -> Iterable[int]:
        """Of whom something is kept."""
        return (key.value for key in self._table)
