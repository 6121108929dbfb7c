"""One reader's queue of events: bounded, and honest about what it had to drop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from portwatch.model import Event, Socket
from portwatch.tree import Identity
from portwatch.width import EVERYTHING, Width

log = logging.getLogger("portwatch")

CAPACITY = 65_536


class Subscription:
    """`offer` never waits; a reader that falls behind loses the newest, and is told how many.

    With `callback` the hub's workers deliver; without, the reader takes with `get`.
    """

    def __init__(
        self,
        make_gap: Callable[[int], Event],
        wants: Callable[[Event], bool] = lambda _: True,
        *,
        callback: Callable[[Event], object] | None = None,
        on_event: Callable[[], None] = lambda: None,
        capacity: int = CAPACITY,
        width: Width = EVERYTHING,
    ) -> None:
        self.callback = callback
        self.width = width
        """What it wants nothing outside of."""
        self.roots: dict[Identity, int] = {}
        """Whose trees it hears of, each with the tree's bit, if it is one of trees."""
        self.unwanted: dict[Identity, int] = {}
        """Whose trees it hears nothing of: the same as long as it lasts."""
        self._told: set[int | None] = set()
        """The sockets whose open was told to it: it joins some while they are open, and is told their close."""
        self.is_scheduled = False
        """Whether a worker has it, or is about to: the hub's, guarded by its lock."""
        self.ended = threading.Event()
        self._make_gap = make_gap
        self._wants = wants
        self._on_event = on_event
        self._capacity = capacity
        self._queue: SimpleQueue[Event | None] = SimpleQueue()
        self._dropped = 0
        self._lock = threading.Lock()

    def offer(self, event: Event) -> None:
        """Takes an event, or counts it as dropped."""
        if self.asks_for_trees and not self._concerns(event):
            return
        if not self._wants(event):
            return
        # While something is dropped and not yet told, all is: the gap stands where it arose.
        if self._dropped or self._queue.qsize() >= self._capacity:
            with self._lock:
                self._dropped += 1
        else:
            self._queue.put(event)
        self._notify()

    @property
    def asks_for_trees(self) -> bool:
        """Whether it matters to it whose something is."""
        return self.width.of_trees or bool(self.unwanted)

    def misses(self, socket: Socket, trees: int) -> bool:
        """Whether it hears of what is of these trees, and has not been told of this socket."""
        return self.asks_for_trees and self._hears_of(trees) and not self._was_told(socket)

    def shows(self, socket: Socket, trees: int) -> bool:
        """Whether a socket of these trees is open to it: what it was told of is until it hears of the close."""
        if self._was_told(socket):
            trees &= ~sum(self.unwanted.values())
        return self._hears_of(trees)

    def _was_told(self, socket: Socket) -> bool:
        return (socket.inode or socket.cookie) in self._told

    def _hears_of(self, trees: int) -> bool:
        is_wanted = not self.width.of_trees or bool(trees & sum(self.roots.values()))
        return is_wanted and not trees & sum(self.unwanted.values())

    def _concerns(self, event: Event) -> bool:
        if event.kind == "gap":
            return True
        socket = event.inode or event.cookie
        if event.kind == "close":
            is_told = socket in self._told
            self._told.discard(socket)
            return is_told
        if not self._hears_of(event.trees):
            return False
        if event.kind == "open":
            self._told.add(socket)
        return True

    def close(self) -> None:
        """Ends it, after what is queued."""
        self._queue.put(None)
        self._notify()

    @property
    def has_events(self) -> bool:
        """Whether `get` would return at once."""
        return bool(self._dropped) or not self._queue.empty()

    def get(self, timeout: float | None = None) -> Event | None:
        """The next event, waiting for it; None at the end. Raises queue.Empty after `timeout` seconds."""
        return self._gap_if_drained() or self._queue.get(timeout=timeout)

    def get_nowait(self) -> Event | None:
        """The next event, or None at the end; raises queue.Empty if there is none yet."""
        return self._gap_if_drained() or self._queue.get_nowait()

    def deliver(self) -> None:
        """Hands every event that is queued to the callback."""
        assert self.callback
        while True:
            try:
                event = self.get_nowait()
            except Empty:
                return
            if event is None:
                self.ended.set()
                return
            try:
                self.callback(event)
            except Exception:  # a callback's errors are its own; the next event is still delivered
                log.exception("a callback raised")

    def _notify(self) -> None:
        try:
            self._on_event()
        except Exception:  # its errors are its own; and a closed loop, which fails once, fails for ever
            log.exception("a reader cannot be told of events any more")
            self._on_event = lambda: None

    def _gap_if_drained(self) -> Event | None:
        if not self._dropped or not self._queue.empty():
            return None
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        return self._make_gap(dropped)
