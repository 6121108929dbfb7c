"""One subscriber's bounded queue of events."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from portwatch.event import Event
from portwatch.filters import KernelFilter
from portwatch.filters.kernel_filter import UNRESTRICTED
from portwatch.linux.lineage import Identity
from portwatch.model import Socket

log = logging.getLogger("portwatch")

CAPACITY = 65_536


class Subscription:
    """The bounded queue between the hub and one subscriber.

    The hub's reader offers events and never waits. A subscriber that falls behind loses the newest events and
    gets one gap instead.

    One thread at a time takes events: with a callback, a worker of the hub by `deliver`; without, the
    subscriber's own thread by `get` or `get_nowait`. `_lock` guards changes of `_dropped`. The hub's reader
    owns the filter by tree: `roots`, `excluded_roots` and `_reported`.
    """

    def __init__(
        self,
        make_gap: Callable[[int], Event],
        admits: Callable[[Event], bool] = lambda _: True,
        *,
        callback: Callable[[Event], object] | None = None,
        on_event: Callable[[], None] = lambda: None,
        capacity: int = CAPACITY,
        kernel_filter: KernelFilter = UNRESTRICTED,
    ) -> None:
        self.callback = callback
        self.kernel_filter = kernel_filter
        """Passes every event that the subscriber wants, and maybe others."""
        self.roots: dict[Identity, int] = {}
        """The included trees, each with its bit. Used only if `kernel_filter` restricts to trees."""
        self.excluded_roots: dict[Identity, int] = {}
        """The excluded trees, each with its bit. They stay the same until the subscription ends."""
        self.is_scheduled = False
        """True while a worker delivers or is about to: at most one does. Guarded by the hub's condition."""
        self.ended = threading.Event()
        """Set when the callback has had the last event."""
        self._make_gap = make_gap
        self._admits = admits
        self._on_event = on_event
        self._capacity = capacity
        self._reported: set[int | None] = set()
        """Open sockets whose open passed the filter by tree. Their close passes too, whichever process holds
        them by then. Unused without such a filter."""
        self._queue: SimpleQueue[Event | None] = SimpleQueue()
        self._dropped = 0
        self._lock = threading.Lock()

    def offer(self, event: Event) -> None:
        """Queue an event, or count it as dropped."""
        if self.filters_by_tree:
            passes = self._passes_tree_filter(event)
            self._track(event, passes)
            if not passes:
                return
        if not self._admits(event):
            return
        # After a drop, drop everything until the subscriber has taken the gap, which stands for one stretch.
        if self._dropped or self._queue.qsize() >= self._capacity:
            with self._lock:
                self._dropped += 1
        else:
            self._queue.put(event)
        self._notify()

    @property
    def filters_by_tree(self) -> bool:
        """True if it includes or excludes process trees."""
        return self.kernel_filter.watched_trees_only or bool(self.excluded_roots)

    def misses(self, socket: Socket, trees: int) -> bool:
        """Return True if an open socket of these trees passes, and its open was never offered."""
        return self.filters_by_tree and self._passes_trees(trees) and not self._was_reported(socket)

    def shows(self, socket: Socket, trees: int) -> bool:
        """Return True if an open socket of these trees passes, or was reported before it was excluded."""
        if self._was_reported(socket):
            trees &= ~sum(self.excluded_roots.values())
        return self._passes_trees(trees)

    def close(self) -> None:
        """End the queue after what it holds."""
        self._queue.put(None)
        self._notify()

    @property
    def has_events(self) -> bool:
        """True if `get` would return at once."""
        return bool(self._dropped) or not self._queue.empty()

    def get(self, timeout: float | None = None) -> Event | None:
        """Wait for the next event; None at the end. Raise queue.Empty after `timeout` seconds."""
        return self._gap_if_drained() or self._queue.get(timeout=timeout)

    def get_nowait(self) -> Event | None:
        """Return the next event; None at the end. Raise queue.Empty if there is none yet."""
        return self._gap_if_drained() or self._queue.get_nowait()

    def deliver(self) -> None:
        """Call the callback with every queued event."""
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
            except Exception:  # an error in a callback must not stop the events after it
                log.exception("a callback raised")

    def _was_reported(self, socket: Socket) -> bool:
        return (socket.inode or socket.cookie) in self._reported

    def _passes_trees(self, trees: int) -> bool:
        is_included = not self.kernel_filter.watched_trees_only or bool(trees & sum(self.roots.values()))
        return is_included and not trees & sum(self.excluded_roots.values())

    def _passes_tree_filter(self, event: Event) -> bool:
        if event.kind == "gap":
            return True
        if event.kind == "close":
            return (event.inode or event.cookie) in self._reported
        return self._passes_trees(event.trees)

    def _track(self, event: Event, passes: bool) -> None:
        if event.kind == "close":
            self._reported.discard(event.inode or event.cookie)
        elif event.kind == "open" and passes:
            self._reported.add(event.inode or event.cookie)

    def _notify(self) -> None:
        try:
            self._on_event()
        except Exception:  # a closed event loop fails every time: log it once and stop calling
            log.exception("a subscriber cannot be notified of events any more")
            self._on_event = lambda: None

    def _gap_if_drained(self) -> Event | None:
        if not self._dropped or not self._queue.empty():
            return None
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        return self._make_gap(dropped)
