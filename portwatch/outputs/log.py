"""A line for each change, to whoever reads our standard output: who reads slowly keeps nobody waiting."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import Full, Queue
from typing import TextIO

from portwatch.event import Event

log = logging.getLogger("portwatch")

_MOST_WAITING = 10_000


class EventLog:
    """Writes in a thread of its own, as long as somebody reads."""

    def __init__(self, stream: TextIO, line: Callable[[Event], str]) -> None:
        self._stream = stream
        self._line = line
        self._queue: Queue[Event | None] = Queue(_MOST_WAITING)
        self.left_out = 0
        """Events that are not in it: nobody read fast enough."""
        self._thread = threading.Thread(target=self._run, name="portwatch-log", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Takes an event; never waits."""
        try:
            self._queue.put_nowait(event)
        except Full:
            self.left_out += 1

    def close(self, timeout: float) -> None:
        """Ends it, when what waits is written or time is up."""
        try:
            self._queue.put(None, timeout=timeout)
        except Full:  # nobody reads: it ends with the process
            return
        self._thread.join(timeout)

    def _run(self) -> None:
        told = 0
        try:
            while (event := self._queue.get()) is not None:
                self._stream.write(self._line(event) + "\n")
                if self._queue.empty():
                    self._stream.flush()
                if self.left_out > told:
                    log.warning("%d changes were not logged: nobody read fast enough", self.left_out - told)
                    told = self.left_out
        except OSError as error:
            log.warning("changes are no longer logged: %s", error.strerror)
