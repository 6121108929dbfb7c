"""Puts records from one buffer for each CPU into the order in which they happened."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

Fields = tuple[Any, ...]
"""A record's fields, its time first."""


class Order:
    """Drains all buffers, and hands on what nothing older can follow.

    Buffers are emptied one after the other: a socket's close may be found in the second
    when its open came into the first just after that was left. But an open is in its
    buffer before its close happens at all. So of a drain, what happened before the drain
    began is complete; what is younger waits for the next one.
    """

    def __init__(self, drain: Callable[[], list[Fields]], clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._drain = drain
        self._clock = clock
        self._waiting: list[Fields] = []

    @property
    def is_waiting(self) -> bool:
        """Whether records wait for the next drain."""
        return bool(self._waiting)

    def take(self) -> list[Fields]:
        """All that had happened when this was called, and what more is in order."""
        begin = self._look()
        if self._waiting and self._waiting[-1][0] >= begin:
            begin = self._look()
        complete = next(
            (index for index, fields in enumerate(self._waiting) if fields[0] >= begin), len(self._waiting)
        )
        taken, self._waiting = self._waiting[:complete], self._waiting[complete:]
        return taken

    def _look(self) -> int:
        begin = self._clock()
        self._waiting += self._drain()
        self._waiting.sort(key=lambda fields: fields[0])
        return begin
