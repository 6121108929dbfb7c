"""The event log: a line on standard output for each event. Standard output may be a slow pipe."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import Full, Queue
from typing import TextIO

from portwatch.event import Event

log = logging.getLogger("portwatch")

_MAX_PENDING = 10_000


class EventLog:
    """Writes events in its own thread. If standard output is read too slowly, drops events and counts them."""

    def __init__(self, stream: TextIO, line: Callable[[Event], str]) -> None:
        self._stream = stream
        self._line = line
        self._queue: Queue[Event | None] = Queue(_MAX_PENDING)
        self.dropped = 0
        """Number of events that were not logged."""
        self._thread = threading.Thread(target=self._run, name="portwatch-log", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Queue an event. Never blocks."""
        try:
            self._queue.put_nowait(event)
        except Full:
            self.dropped += 1

    def close(self, timeout: float) -> None:
        """Wait until the queued events are written, but not much longer than `timeout` seconds."""
        try:
            self._queue.put(None, timeout=timeout)
        except Full:  # no process reads stdout; the thread ends when the process exits
            return
        self._thread.join(timeout)

    def _run(self) -> None:
        reported = 0
        try:
            while (event := self._queue.get()) is not None:
                self._stream.write(self._line(event) + "\n")
                if self._queue.empty():
                    self._stream.flush()
                if self.dropped > reported:
                    log.warning(
                        "%d events were not logged: standard output is read too slowly", self.dropped - reported
                    )
                    reported = self.dropped
        except OSError as error:
            log.warning("events are no longer logged: cannot write to standard output: %s", error.strerror)
