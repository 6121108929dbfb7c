"""One subscriber's bounded queue of events."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
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
    """What a subscriber that fell behind has not been told: how many events, and what they changed in sum."""

    count: int = 0
    _changes: dict[tuple[object, ...], list[Event]] = field(default_factory=dict)
    """For each socket, the close or the open that it missed, or a close and then an open."""

    def add(self, event: Event) -> None:
        """Count an event. A close that follows an open which was missed too leaves nothing to tell."""
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
        """Return the closes and opens that are left, in their order."""
        return sorted((event for changes in self._changes.values() for event in changes), key=_seq_of)


class Subscription:
    """The bounded queue between the hub and one subscriber.

    The hub's reader offers events and never waits. A subscriber that falls behind loses the newest events. When
    it has taken all that is queued, it asks the hub to catch up. It then gets one gap, and the opens and closes
    that leave it with what is open.

    The reader alone puts events; one thread at a time takes them: with a callback, a worker of the hub by
    `deliver`; without, the subscriber's own thread by `get` or `get_nowait`. `_lock` guards `_missed` together
    with the decision whether an event is queued, so a subscriber that finds the queue empty and `_missed` None
    is woken by the next event. The reader owns the filter by tree: `roots`, `excluded_roots` and `_reported`.
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
        """The included trees, each with its bit. Used only if `kernel_filter` restricts to trees."""
        self.excluded_roots: dict[Identity, int] = {}
        """The excluded trees, each with its bit. They stay the same until the subscription ends."""
        self.is_scheduled = False
        """True while a worker delivers or is about to: at most one does. Guarded by the hub's condition."""
        self.ended = threading.Event()
        """Set when the callback has had the last event."""
        self._admits = admits
        self._on_event = on_event
        self._on_lag = on_lag
        """Called in the subscriber's thread when it has taken everything before a gap: makes the reader put
        the gap."""
        self._capacity = capacity
        self._reported: set[int | None] = set()
        """Open sockets whose open passed the filter by tree. Their close passes too, whichever process holds
        them by then. Unused without such a filter."""
        self._queue: SimpleQueue[Event | None] = SimpleQueue()
        self._missed: Missed | None = None
        self._has_asked = False
        """True from when the subscriber asked to catch up until it did. Guarded by `_lock`."""
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
            # After the first drop, drop everything until the gap is put: it stands for one stretch.
            if self._missed is None and self._queue.qsize() >= self._capacity:
                self._missed = Missed()
            if self._missed is not None:
                self._missed.add(event)
                return
            self._queue.put(event)
        self._notify()

    def take_missed(self) -> Missed | None:
        """Return what was dropped, and start anew. The reader then puts the events that make up for it."""
        with self._lock:
            missed, self._missed, self._has_asked = self._missed, None, False
        return missed

    def catch_up(self, events: Iterable[Event]) -> None:
        """Queue the gap and what follows it, however many these are."""
        for event in events:
            self._queue.put(event)
        self._notify()

    @property
    def filters_by_tree(self) -> bool:
        """True if it includes or excludes process trees."""
        return self.kernel_filter.watched_trees_only or bool(self.excluded_roots)

    def lacks(self, socket: Socket, trees: int) -> bool:
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
        return not self._queue.empty()

    def get(self, timeout: float | None = None) -> Event | None:
        """Wait for the next event; None at the end. Raise queue.Empty after `timeout` seconds."""
        self._ask_if_behind()
        return self._queue.get(timeout=timeout)

    def get_nowait(self) -> Event | None:
        """Return the next event; None at the end. Raise queue.Empty if there is none yet."""
        self._ask_if_behind()
        return self._queue.get_nowait()

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
            except BaseException:  # SystemExit too: a callback must not end the thread that serves others
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

    def _ask_if_behind(self) -> None:
        with self._lock:
            must_ask = self._missed is not None and not self._has_asked and self._queue.empty()
            self._has_asked |= must_ask
        if must_ask:
            self._on_lag(self)


def _seq_of(event: Event) -> int:
    return event.seq
