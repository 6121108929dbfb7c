"""Sorts the records of several buffers, one per CPU, into the order of their events."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

Fields = tuple[Any, ...]
"""The fields of a record. The first one is the time of its event."""


class OrderedReader:
    """Reads all buffers, and returns records only when no older record can arrive any more.

    Buffers are drained one after the other. So a drain may return a close from the second buffer, but miss the
    open that came before the close. This happens if the open's record reached the first buffer just after that
    buffer was drained.

    A record is always in its buffer before anything else happens to its socket. Therefore a drain finds all
    records that are older than the start of the drain. Younger records are kept until the next drain.
    """

    def __init__(self, drain: Callable[[], list[Fields]], clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._drain = drain
        self._clock = clock
        self._pending: list[Fields] = []

    @property
    def has_pending(self) -> bool:
        """True if records are kept until the next drain."""
        return bool(self._pending)

    def read(self) -> list[Fields]:
        """Return records in the order of their events, including those of all events before this call."""
        start = self._drain_buffers()
        if self._pending and self._pending[-1][0] >= start:
            start = self._drain_buffers()
        complete = next(
            (index for index, fields in enumerate(self._pending) if fields[0] >= start), len(self._pending)
        )
        records, self._pending = self._pending[:complete], self._pending[complete:]
        return records

    def _drain_buffers(self) -> int:
        """Drain all buffers into the pending records. Return the time at which the drain started."""
        start = self._clock()
        self._pending += self._drain()
        self._pending.sort(key=lambda fields: fields[0])
        return start
