"""Puts the records of several buffers, one per CPU, into the order of their events."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

Fields = tuple[Any, ...]
"""The fields of a record. The first is its time."""


class OrderedReader:
    """Reads all buffers, and returns the records that no older record can follow.

    Buffers are drained one after the other. So a drain may find a close in the second buffer, but not the
    open before it, which came into the first buffer just after that was drained. But a record is in its
    buffer before anything later happens to its socket. Therefore all records older than the start of a drain
    are complete after it; younger records wait for the next drain.
    """

    def __init__(self, drain: Callable[[], list[Fields]], clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._drain = drain
        self._clock = clock
        self._pending: list[Fields] = []

    @property
    def has_pending(self) -> bool:
        """True if records wait for the next drain."""
        return bool(self._pending)

    def read(self) -> list[Fields]:
        """Return at least all records of what happened before the call, in order."""
        start = self._drain_buffers()
        if self._pending and self._pending[-1][0] >= start:
            start = self._drain_buffers()
        complete = next(
            (index for index, fields in enumerate(self._pending) if fields[0] >= start), len(self._pending)
        )
        records, self._pending = self._pending[:complete], self._pending[complete:]
        return records

    def _drain_buffers(self) -> int:
        """Return the time at which the drain started."""
        start = self._clock()
        self._pending += self._drain()
        self._pending.sort(key=lambda fields: fields[0])
        return start
