"""One subscriber's bounded queue of events."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from operator import attrgetter
from queue import Empty, SimpleQueue

from portwatch.event import Event
from portwatch.filters import KernelFilter
from portwatch.filters.kernel_filter import UNRESTRICTED
from portwatch.linux.lineage import Identity
from portwatch.model import Socket

log = logging.getLogger("portwatch")

CAPACITY = 65_536


@dataclass(slots=True)
class Missed:
    """The events that a slow subscriber missed: their number, and their net effect."""

    count: int = 0
    _changes: dict[tuple[object, ...], list[Event]] = field(default_factory=dict)
    """The missed events of each socket: a close, an open, or a close followed by an open."""

    def add(self, event: Event) -> None:
        """Count an event. If the open and the close of a socket are both missed, they cancel out."""
        self.count += 1
        if event.kind not in ("open", "close"):
            return
        socket = (event.cookie, event.inode, event.netns, event.proto, event.address, event.port)
        changes = self._changes.setdefault(socket, [])
        if event.kind == "close" and changes and changes[-1].kind == "open":
            changes.pop()
        else:
            changes.append(event)
        if not changes:
            del self._changes[socket]

    def changes(self) -> list[Event]:
        """Return the opens and closes that have not cancelled out, in order."""
        return sorted((event for changes in self._changes.values() for event in changes), key=attrgetter("seq"))


class Subscription:
    """The bounded queue between the hub and one subscriber.

    The hub's reader offers events and never waits. While the queue is full, new events are counted instead of
    queued. When the subscriber has taken every queued event, it asks the hub's reader to let it catch up. The
    reader then queues one gap, followed by the opens and closes that the subscriber needs to know what is open.

    Only the reader puts events into the queue, and one thread at a time takes them out. If there is a callback,
    that thread is a worker of the hub, which calls `deliver`. Otherwise it is the subscriber's own thread,
    which calls `get` or `get_nowait`.

    `offer` holds `_lock` while it decides whether to queue an event or to count it in `_missed`. So if a
    subscriber finds the queue empty and `_missed` None, the next event is queued and wakes the subscriber.

    Only the reader's thread uses the filter by process tree: `roots`, `excluded_roots` and `_reported`.
    """

    def __init__(
        self,
        admits: Callable[[Event], bool] = lambda _: True,
        *,
        callback: Callable[[Event], object] | None = None,
        on_event: Callable[[], None] = lambda: None,
        on_lag: Callable[[Subscription], None] = lambda _: None,
        capacity: int = CAPACITY,
        kernel_filter: KernelFilter = UNRESTRICTED,
    ) -> None:
        self.callback = callback
        self.kernel_filter = kernel_filter
        """Passes every event that the subscriber wants, and maybe others."""
        self.roots: dict[Identity, int] = {}
        """The roots of the included process trees, each with its bit in a record.

        Used only if `kernel_filter` restricts the subscription to trees.
        """
        self.excluded_roots: dict[Identity, int] = {}
        """The roots of the excluded process trees, each with its bit in a record.

        They stay the same until the subscription ends.
        """
        self.is_scheduled = False
        """True while a worker delivers events or is about to, so that no second worker does.

        Guarded by the hub's condition.
        """
        self.ended = threading.Event()
        """Set when the callback has had the last event."""
        self._admits = admits
        self._on_event = on_event
        self._on_lag = on_lag
        """Asks the reader to queue the gap. Called in the subscriber's thread after it has taken every event
        that precedes the gap."""
        self._capacity = capacity
        self._reported: set[int | None] = set()
        """Sockets that are still open and whose open event passed the filter by tree. Their close events pass
        too, no matter which processes hold the sockets by then. Empty if there is no filter by tree."""
        self._queue: SimpleQueue[Event | None] = SimpleQueue()
        self._missed: Missed | None = None
        self._has_asked = False
        """True after the subscriber has asked to catch up, until the reader takes `_missed`.

        Guarded by `_lock`.
        """
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
        with self._lock:
            # After the first dropped event, drop every event until the gap is queued, because a gap stands for
            # consecutive events.
            if self._missed is None and self._queue.qsize() >= self._capacity:
                self._missed = Missed()
            if self._missed is not None:
                self._missed.add(event)
                return
            self._queue.put(event)
        self._notify()

    def take_missed(self) -> Missed | None:
        """Return what the subscriber missed, and forget it. The reader then calls `catch_up`."""
        with self._lock:
            missed, self._missed, self._has_asked = self._missed, None, False
        return missed

    def catch_up(self, events: Iterable[Event]) -> None:
        """Queue a gap and the events that follow it, without a limit."""
        for event in events:
            self._queue.put(event)
        self._notify()

    @property
    def filters_by_tree(self) -> bool:
        """True if the subscription includes or excludes process trees."""
        return self.kernel_filter.watched_trees_only or bool(self.excluded_roots)

    def lacks(self, socket: Socket, trees: int) -> bool:
        """Return True if this open socket passes the filter by tree now but has not been reported."""
        return self.filters_by_tree and self._passes_trees(trees) and not self._was_reported(socket)

    def shows(self, socket: Socket, trees: int) -> bool:
        """Return True if a listing for the subscriber must include this open socket.

        The socket must pass the filter by tree. A socket that was reported stays in the listing even if a
        process of an excluded tree has got it since.
        """
        if self._was_reported(socket):
            trees &= ~sum(self.excluded_roots.values())
        return self._passes_trees(trees)

    def close(self) -> None:
        """Mark the end of the queue. The subscriber still gets the events that are queued."""
        self._queue.put(None)
        self._notify()

    @property
    def has_events(self) -> bool:
        """True if `get` would return at once."""
        return not self._queue.empty()

    def get(self, timeout: float | None = None) -> Event | None:
        """Wait for the next event. Return None at the end. Raise queue.Empty after `timeout` seconds."""
        with suppress(Empty):
            return self.get_nowait()
        return self._queue.get(timeout=timeout)

    def get_nowait(self) -> Event | None:
        """Return the next event, or None at the end. Raise queue.Empty if no event is queued."""
        try:
            return self._queue.get_nowait()
        except Empty:
            self._ask_if_behind()
            raise

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
            except BaseException:  # even SystemExit: this thread also serves other subscribers
                log.exception("a callback raised")

    def _was_reported(self, socket: Socket | Event) -> bool:
        return _reported_key(socket) in self._reported

    def _passes_trees(self, trees: int) -> bool:
        is_included = not self.kernel_filter.watched_trees_only or bool(trees & sum(self.roots.values()))
        return is_included and not trees & sum(self.excluded_roots.values())

    def _passes_tree_filter(self, event: Event) -> bool:
        if event.kind == "gap":
            return True
        if event.kind == "close":
            return self._was_reported(event)
        return self._passes_trees(event.trees)

    def _track(self, event: Event, passes: bool) -> None:
        if event.kind == "close":
            self._reported.discard(_reported_key(event))
        elif event.kind == "open" and passes:
            self._reported.add(_reported_key(event))

    def _notify(self) -> None:
        try:
            self._on_event()
        except Exception:  # a closed event loop fails every time: log it once and stop calling
            log.exception("a subscriber cannot be notified of events any more")
            self._on_event = lambda: None

    def _ask_if_behind(self) -> None:
        with self._lock:
            must_ask = self._missed is not None and not self._has_asked and self._queue.empty()
            self._has_asked |= must_ask
        if must_ask:
            self._on_lag(self)


def _reported_key(socket: Socket | Event) -> int | None:
    return socket.inode or socket.cookie
