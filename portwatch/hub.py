"""One engine and one table for all the watchers of a process, and the thread that reads them."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from operator import or_
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, cast

from portwatch.engines import Choice, Engine, Options, choose
from portwatch.errors import PortwatchError
from portwatch.model import Event, Held, Listener, Origin, Record
from portwatch.refusals import Refusals
from portwatch.snapshot import procnet
from portwatch.snapshot.crosscheck import cross_checked
from portwatch.subscription import CAPACITY, Subscription
from portwatch.table import Table, names
from portwatch.tree import Bits, Identity
from portwatch.width import EVERYTHING, Width

log = logging.getLogger("portwatch")

RECONCILE_INTERVAL = 60.0


T = TypeVar("T")


class Errand(Generic[T]):
    """Something for the worker that reads, to which engine and table belong."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._outcome: SimpleQueue[tuple[T | None, Exception | None]] = SimpleQueue()

    def run(self) -> None:
        """Does it."""
        try:
            self._outcome.put((self._work(), None))
        except Exception as error:  # whoever waits is told, and reading goes on
            log.debug("an errand failed", exc_info=True)
            self.refuse(error)

    def refuse(self, error: Exception) -> None:
        """Has whoever waits raise this."""
        self._outcome.put((None, error))

    def wait(self) -> T:
        """What came of it."""
        result, error = self._outcome.get()
        if error:
            raise error
        return cast("T", result)


@dataclass(slots=True)
class Counts:
    """What had to be repaired, for whoever wants to know how far to trust the rest."""

    lost: int = 0
    unheard: int = 0
    """Events that subscribers were too slow for, and were told the number of."""
    reconciliations: Counter[str] = field(default_factory=Counter)
    drift: Counter[str] = field(default_factory=Counter)
    """Ports that a check found open, or closed, and no record had told of."""


class Hub:
    """Reads an engine, keeps the table, and hands each event to every subscriber.

    Its threads are leader and followers: the one that reads an event delivers it, while
    another takes over the reading. Handing each event to a thread of its own instead cost
    50 of the 150 µs from the listen to the callback (bench/bench_latency.py).
    """

    def __init__(
        self, choice: Choice, reconcile_interval: float = RECONCILE_INTERVAL, first_seq: int = 1
    ) -> None:
        self.choice = choice
        self.counts = Counts()
        self.failure: Exception | None = None
        """Why reading ended, if it did not end by `stop`."""
        self._engine: Engine = choice.engine
        self._table = Table(self._engine.name, first_seq)
        self._interval = reconcile_interval
        self._next_check = 0.0
        self._next_repair = 0.0
        self._subscriptions: list[Subscription] = []
        self._errands: deque[Errand[Any]] = deque()
        self._trees = Bits()
        self._width = EVERYTHING
        """What the engine tells of, which holds whatever anybody wants."""
        self._workers: list[threading.Thread] = []
        self._turn = threading.Condition()
        self._is_read = False
        """Whether a worker is reading: to that one, engine and table belong."""
        self._due: deque[Subscription] = deque()
        self._stopping = False
        self._ready = threading.Event()

    @classmethod
    def open(
        cls,
        engine: str,
        options: Options,
        reconcile_interval: float = RECONCILE_INTERVAL,
        first_seq: int = 1,
    ) -> Hub:
        """A hub whose engine is attached. Raises EngineUnavailable."""
        choice = choose(engine, options, prove=lambda candidate: candidate.attach())
        return cls(choice, reconcile_interval, first_seq)

    def start(self) -> None:
        """Starts to read."""
        self._add_worker()

    def stop(self) -> None:
        """Ends the workers, takes the programs out of the kernel, and closes every subscription."""
        self._stopping = True
        self._engine.wake()
        with self._turn:
            self._turn.notify_all()
        for worker in self._workers:
            if worker is not threading.current_thread():
                worker.join()
        self._refuse_errands()
        self._close_subscriptions()
        self._engine.detach()

    def is_worker(self) -> bool:
        """Whether the caller is in a callback."""
        return threading.current_thread() in self._workers

    def wait_ready(self) -> None:
        """Waits until the table holds what was open at the start."""
        self._ready.wait()

    def subscribe(
        self,
        wants: Callable[[Event], bool],
        *,
        callback: Callable[[Event], object] | None = None,
        on_event: Callable[[], None] = lambda: None,
        snapshot: bool = True,
        capacity: int = CAPACITY,
        width: Width = EVERYTHING,
        roots: Sequence[Identity] | None = None,
        resumes: bool = False,
        instead_of: Subscription | None = None,
    ) -> Errand[Subscription]:
        """Every event that is wanted from here on; with `snapshot`, first of all what is open.

        Nothing is wanted outside of `width`. With `roots`, of their trees only: waiting for it raises
        PortwatchError if one of these has ended. For a reader that `resumes`, and has heard of other things
        before, it begins with a gap. `instead_of` another it takes over where that one ends, without an event
        between them, or one that both have.
        """
        subscription = Subscription(
            self._gap_of_subscriber,
            wants if snapshot else lambda event: event.origin != "snapshot" and wants(event),
            callback=callback,
            on_event=on_event,
            capacity=capacity,
            width=replace(width, of_trees=roots is not None),
        )

        def begin() -> Subscription:
            self._set_width([*self._subscriptions, subscription])
            if resumes or instead_of:
                subscription.offer(self._table.gap(0 if instead_of else None, time.time_ns()))
            if roots is None and self._ready.is_set():
                for event in self._table.replay(time.time_ns(), "snapshot"):
                    subscription.offer(event)
            self._subscriptions.append(subscription)
            try:
                self._watch(subscription, roots or ())
            except PortwatchError:
                self._end(subscription)
                raise
            if instead_of:
                self._end(instead_of)
                instead_of.close()
            return subscription

        errand = Errand(begin)
        self._send(errand)
        if callback:
            self._add_worker()
        return errand

    def unsubscribe(self, subscription: Subscription) -> None:
        """Ends a subscription."""

        def end() -> None:
            try:
                self._end(subscription)
            finally:  # whatever becomes of the engine, whoever stops waits for its last event
                subscription.close()
                with self._turn:
                    self._schedule([subscription])

        self._send(Errand(end))

    def watch(self, subscription: Subscription, root: Identity) -> None:
        """Has a subscription hear of a tree, first of what it has open. Raises PortwatchError if it ended."""
        self._ask(lambda: self._watch(subscription, [root]))

    def unwatch(self, subscription: Subscription, root: Identity) -> None:
        """Has a subscription hear no more of a tree."""
        self._ask(lambda: self._unwatch(subscription, root))

    def listeners(self, subscription: Subscription, *, look: bool = True) -> Iterator[Listener]:
        """What is open and would be told to a subscription.

        Its holders are as the kernel has them now, or, without a `look`, as of the last check.
        """

        def listing() -> Iterator[Listener]:
            if look:
                self._reconcile("asked", "reconcile")
            return self._table.listeners(subscription.trees if subscription.width.of_trees else None)

        return self._ask(listing)

    def _send(self, errand: Errand[Any]) -> None:
        """Has the worker that reads do something."""
        self._errands.append(errand)
        self._engine.wake()
        if self._stopping:
            self._refuse_errands()

    def _gap_of_subscriber(self, lost: int) -> Event:
        self.counts.unheard += lost
        return self._table.gap(lost, time.time_ns())

    def _ask(self, work: Callable[[], T]) -> T:
        """The same, and waits for what comes of it."""
        errand = Errand(work)
        self._send(errand)
        return errand.wait()

    def _refuse_errands(self) -> None:
        while self._errands:
            self._errands.popleft().refuse(
                PortwatchError(f"no more events are read: {self.failure or 'it ended'}")
            )

    def _end(self, subscription: Subscription) -> None:
        self._subscriptions.remove(subscription)
        for root in tuple(subscription.roots):
            self._unwatch(subscription, root)
        if self._subscriptions:
            self._set_width(self._subscriptions)

    def _watch(self, subscription: Subscription, roots: Iterable[Identity]) -> None:
        new = [root for root in roots if root not in subscription.roots]
        for root in new:
            subscription.roots[root] = self._bit_of(root)
        if new and self._ready.is_set():
            self._reconcile("asked", "snapshot")

    def _bit_of(self, root: Identity) -> int:
        """Has the engine tell of a tree, if it does not yet."""
        tree, is_new = self._trees.take(root)
        try:
            if is_new:
                self._engine.watch(root, tree)
        except PortwatchError:
            self._trees.give_back(root)
            self._engine.unwatch(tree)
            raise
        return tree

    def _unwatch(self, subscription: Subscription, root: Identity) -> None:
        del subscription.roots[root]
        tree, is_last = self._trees.give_back(root)
        if is_last:
            self._engine.unwatch(tree)
            self._table.forget(tree)

    def _set_width(self, subscriptions: list[Subscription]) -> None:
        """Has the kernel tell of no more than these want between them."""
        wanted = reduce(or_, (one.width for one in subscriptions))
        if wanted == self._width:
            return
        before = self._width
        self._width = self._engine.narrow(wanted)
        self._table.keep_only(self._width.holds)
        if before | self._width != before and self._ready.is_set():
            self._reconcile("asked", "snapshot")

    def _add_worker(self) -> None:
        worker = threading.Thread(target=self._work, name="portwatch", daemon=True)
        self._workers.append(worker)
        worker.start()

    def _work(self) -> None:
        while (task := self._next_task()) is not None:
            task()

    def _next_task(self) -> Callable[[], None] | None:
        with self._turn:
            while True:
                if self._due:
                    return partial(self._deliver, self._due.popleft())
                if self._stopping:
                    return None
                if not self._is_read:
                    self._is_read = True
                    return self._read
                self._turn.wait()

    def _deliver(self, subscription: Subscription) -> None:
        subscription.deliver()
        with self._turn:
            subscription.is_scheduled = False
            self._schedule([subscription])

    def _schedule(self, subscriptions: Iterable[Subscription]) -> None:
        for subscription in subscriptions:
            if subscription.callback and not subscription.is_scheduled and subscription.has_events:
                subscription.is_scheduled = True
                self._due.append(subscription)

    def _read(self) -> None:
        try:
            self._read_once()
        except Exception as error:  # told to whoever waits for events, who must not wait for ever
            log.debug("reading ended", exc_info=True)
            self.failure = error
            self._stopping = True
            self._close_subscriptions()
            self._refuse_errands()
            self._ready.set()
        with self._turn:
            self._is_read = False
            self._schedule(self._subscriptions)
            self._turn.notify(len(self._workers) if self._stopping else max(1, len(self._due)))

    def _read_once(self) -> None:
        if self._errands:
            while self._errands:
                self._errands.popleft().run()
        elif not self._ready.is_set():
            # What is held is known in tens of milliseconds; /proc/net, which takes as long for a few
            # namespaces, is looked at next, when everybody has been told.
            self._merge(self._engine.snapshot().held, "snapshot")
            self._ready.set()
        elif not self.counts.reconciliations:
            self._reconcile("start", "snapshot")
        elif self._engine.lost > self.counts.lost and time.monotonic() >= self._next_repair:
            self._repair()
        elif time.monotonic() >= self._next_check:
            self._reconcile("interval", "reconcile")
        else:
            due = self._next_check
            if self._engine.lost > self.counts.lost:
                due = self._next_repair
            self._apply(self._engine.read(max(0.0, due - time.monotonic())))

    def _close_subscriptions(self) -> None:
        for subscription in self._subscriptions:
            subscription.close()

    def _apply(self, records: list[Record]) -> None:
        batch = deque(records)
        refusals = Refusals(self._engine, self._table, batch)
        while batch:
            record = batch.popleft()
            for event in self._table.apply(record):
                is_taken = event.errno == "EADDRINUSE"
                self._publish(replace(event, held_by=refusals.held_by(record.socket)) if is_taken else event)

    def _repair(self) -> None:
        lost = self._engine.lost
        newly_lost = lost - self.counts.lost
        self.counts.lost = lost
        log.warning("%d records were lost; the table is put right", newly_lost)
        begin = time.monotonic()
        # First what came before the loss: a record that waits must not speak for its socket, whose
        # next one may be what was lost.
        self._apply(self._engine.read_up_to_now())
        self._reconcile("loss", "reconcile")
        # Who loses all the time must not only look: two thirds of it are for reading.
        self._next_repair = time.monotonic() + 2 * (time.monotonic() - begin)
        self._publish(self._table.gap(newly_lost, time.time_ns()))

    def _reconcile(self, reason: str, origin: Origin) -> None:
        """Makes the table equal to what the kernel says, whatever happens meanwhile."""
        events = self._merge(cross_checked(self._engine.snapshot, procnet.read_all), origin)
        self.counts.reconciliations[reason] += 1
        self._next_check = time.monotonic() + self._interval
        if origin == "reconcile":
            for event in events:
                self.counts.drift[event.kind] += 1
                log.debug("found %s: %s port %s", event.kind, event.proto, event.port)

    def _merge(self, held: Iterable[Held], origin: Origin) -> list[Event]:
        """The changes that a snapshot shows, told; then those that happened while it was taken."""
        records = self._engine.read_up_to_now()
        # Only an open or a close settles whether its socket is open.
        pending = {
            name for record in records if record.kind in ("open", "close") for name in names(record.socket)
        }
        events = self._table.merge(held, time.time_ns(), origin, pending)
        for event in events:
            self._publish(event)
        # What was open already, and was found to have come into a tree.
        for subscription in self._subscriptions:
            if subscription.roots:
                for event in self._table.replay(time.time_ns(), origin, subscription.misses):
                    subscription.offer(event)
        self._apply(records)
        return events

    def _publish(self, event: Event) -> None:
        for subscription in self._subscriptions:
            subscription.offer(event)
