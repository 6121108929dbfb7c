"""The processes of watched trees, in a map of bcc's."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

from portwatch.errors import PortwatchError
from portwatch.tree import NO_ROOM


class MemberTable(MutableMapping[int, tuple[int, int]]):
    """Pid to (start, trees), which the programs change meanwhile."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __getitem__(self, pid: int) -> tuple[int, int]:
        found = self._table[self._table.Key(pid)]
        return found.start, found.trees

    def __setitem__(self, pid: int, member: tuple[int, int]) -> None:
        try:
            self._table[self._table.Key(pid)] = self._table.Leaf(*member)
        except Exception as error:  # bcc raises nothing more precise
            raise PortwatchError(NO_ROOM) from error

    def __delitem__(self, pid: int) -> None:
        del self._table[self._table.Key(pid)]

    def __iter__(self) -> Iterator[int]:
        return iter([key.value for key in self._table.keys()])  # noqa: SIM118  # bcc's table is no dict

    def __len__(self) -> int:
        return len(self._table)
