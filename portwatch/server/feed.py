"""From the hub to every output of the daemon, in one thread, one event at a time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from portwatch.model import Event
from portwatch.subscription import Subscription

log = logging.getLogger("portwatch")

Output = Callable[[Event], object]
"""Takes an event at once; what is slow about it has a queue of its own."""


class Feed:
    """Follows a subscription to its end, then the one that took its place."""

    def __init__(self, outputs: Sequence[Output], ended: Callable[[], object]) -> None:
        self._outputs = outputs
        self._ended = ended
        self._next: SimpleQueue[Subscription | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="portwatch-feed", daemon=True)

    def start(self, subscription: Subscription) -> None:
        """Begins with this one."""
        self._next.put(subscription)
        self._thread.start()

    def follow(self, subscription: Subscription) -> None:
        """Has this one be read when the one before has ended."""
        self._next.put(subscription)

    def stop(self) -> None:
        """Waits until what the ended subscriptions had was handed on."""
        self._next.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while (subscription := self._next.get()) is not None:
            for event in iter(subscription.get, None):
                self._hand_on(event)
            self._ended()

    def _hand_on(self, event: Event) -> None:
        for output in self._outputs:
            try:
                output(event)
            except Exception:  # one output's trouble is not the others'
                log.exception("an output failed")
