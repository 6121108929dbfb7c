"""One engine and one table for all the watchers of a process, and the thread that reads them."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial, reduce
from operator import or_
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, cast

from portwatch.engines.choice import Choice, choose
from portwatch.engines.protocol import Engine, Options
from portwatch.errors import PortwatchError
from portwatch.event import Event, Listener, Origin
from portwatch.filters.kernel_filter import UNRESTRICTED, KernelFilter
from portwatch.linux.lineage import Identity
from portwatch.model import OpenSocket, Record
from portwatch.snapshot import proc_net
from portwatch.snapshot.crosscheck import cross_checked
from portwatch.watch.bind_conflicts import BindConflicts
from portwatch.watch.counts import Counts
from portwatch.watch.subscription import CAPACITY, Subscription
from portwatch.watch.table import Table, socket_ids
from portwatch.watch.trees import TreeBits

log = logging.getLogger("portwatch")

RECONCILE_INTERVAL = 60.0
_RETRY_AFTER = 5.0
_CHECK_AFTER_MISSES = 5.0
"""Seconds between two checks, where something may have been missed: mostly that was nothing."""
_MISSES_INTERVAL = 1.0
"""Seconds. To count them takes 20 µs and more, and who reads needs the number each time."""
_READ_TIMEOUT = 1.0
"""Seconds that a read waits, at the most, while another thread looks at /proc."""


T = TypeVar("T")


class Request(Generic[T]):
    """Something for the worker that reads, to which engine and table belong."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._outcome: SimpleQueue[tuple[T | None, Exception | None]] = SimpleQueue()

    def run(self) -> None:
        """Does it."""
        try:
            self._outcome.put((self._work(), None))
        except Exception as error:  # whoever waits is told, and reading goes on
            log.debug("an request failed", exc_info=True)
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
        self._retry_at = 0.0
        self._misses_due = 0.0
        self._recursion_misses = 0
        self._subscriptions: list[Subscription] = []
        self._requests: deque[Request[Any]] = deque()
        self._trees = TreeBits()
        self._filter = UNRESTRICTED
        """What the engine tells of, which holds whatever anybody wants."""
        self._workers: list[threading.Thread] = []
        self._needed_workers = 0
        """One that reads, and one for each callback, which may take its time."""
        self._condition = threading.Condition()
        self._has_reader = False
        """Whether a worker is reading: to that one, engine and table belong."""
        self._due: deque[Subscription] = deque()
        self._stopping = False
        self._read_error: Exception | None = None
        """What reading failed with while another thread looked at /proc."""
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
        with self._condition:
            self._condition.notify_all()
            workers = tuple(self._workers)
        for worker in workers:
            if worker is not threading.current_thread():
                worker.join()
        self._refuse_requests()
        if self._subscriptions and not self.failure:
            try:
                self._drain()
            except Exception:  # it ends all the same
                log.exception("the last events could not be read")
        self._close_subscriptions()
        self._ready.set()
        self._engine.detach()

    def is_worker(self) -> bool:
        """Whether the caller is in a callback."""
        return threading.current_thread() in self._workers

    def wait_ready(self) -> None:
        """Waits until the table holds what was open at the start, or nothing more is read."""
        self._ready.wait()

    def subscribe(
        self,
        admits: Callable[[Event], bool],
        *,
        callback: Callable[[Event], object] | None = None,
        on_event: Callable[[], None] = lambda: None,
        snapshot: bool = True,
        capacity: int = CAPACITY,
        kernel_filter: KernelFilter = UNRESTRICTED,
        roots: Sequence[Identity] | None = None,
        excluded_roots: Sequence[Identity] = (),
        resumes: bool = False,
        instead_of: Subscription | None = None,
    ) -> Request[Subscription]:
        """Every event that is wanted from here on; with `snapshot`, first of all what is open.

        `kernel_filter` passes all that is wanted. With `roots`, of their trees only, never of `excluded_roots`:
        waiting for it raises PortwatchError if one of these has ended. For a reader that `resumes`, and has
        heard of other things before, it begins with a gap. `instead_of` another it takes over where that one
        ends, without an event between them, or one that both have.
        """
        subscription = Subscription(
            self._subscriber_gap,
            admits if snapshot else lambda event: not _was_open(event) and admits(event),
            callback=callback,
            on_event=on_event,
            capacity=capacity,
            kernel_filter=replace(kernel_filter, watched_trees_only=roots is not None),
        )

        def begin() -> Subscription:
            before = self._subscriptions
            self._set_kernel_filter([*before, subscription], subscription)
            try:
                self._watch_trees(subscription, roots or (), excluded_roots)
                self._subscriptions = [one for one in before if one is not instead_of] + [subscription]
                if resumes or instead_of:
                    subscription.offer(self._table.gap(0 if instead_of else None, time.time_ns()))
                if roots or excluded_roots:
                    self._report_open_in_trees(subscription)
                elif roots is None and self._ready.is_set():
                    for event in self._table.replay(time.time_ns(), "snapshot"):
                        subscription.offer(event)
            except Exception:
                self._subscriptions = before
                self._end(subscription)
                raise
            if instead_of:
                self._end(instead_of)
                instead_of.close()
            if callback:
                self._add_worker()
            return subscription

        request = Request(begin)
        self._enqueue(request)
        return request

    def unsubscribe(self, subscription: Subscription) -> None:
        """Ends a subscription."""

        def close() -> None:
            subscription.close()
            with self._condition:
                self._schedule([subscription])

        def end() -> None:
            with ExitStack() as last:  # whatever becomes of the engine, whoever stops waits for its last event
                last.callback(close)
                last.callback(self._end, subscription)
                self._drain()

        self._enqueue(Request(end))

    def watch(self, subscription: Subscription, root: Identity) -> None:
        """Has a subscription hear of a tree, first of what it has open. Raises PortwatchError if it ended."""

        def watch() -> None:
            if root not in subscription.roots:
                self._watch_trees(subscription, [root])
                self._report_open_in_trees(subscription)

        self._call(watch)

    def unwatch(self, subscription: Subscription, root: Identity) -> None:
        """Has a subscription hear no more of a tree."""
        self._call(lambda: self._unwatch_tree(subscription.roots, root))

    def listeners(self, subscription: Subscription, *, look: bool = True) -> Iterator[Listener]:
        """What is open and would be told to a subscription.

        Its holders are as the kernel has them now, or, without a `look`, as of the last check.
        """

        def listing() -> Iterator[Listener]:
            if look:
                self._reconcile("asked", "reconcile")
            return self._table.listeners(subscription.shows if subscription.filters_by_tree else None)

        return self._call(listing)

    def _enqueue(self, request: Request[Any]) -> None:
        """Has the worker that reads do something."""
        self._requests.append(request)
        if self._stopping:
            self._refuse_requests()
        else:
            self._engine.wake()

    def _subscriber_gap(self, lost: int) -> Event:
        self.counts.subscriber_drops += lost
        return self._table.gap(lost, time.time_ns())

    def _call(self, work: Callable[[], T]) -> T:
        """The same, and waits for what comes of it."""
        request = Request(work)
        self._enqueue(request)
        return request.wait()

    def _refuse_requests(self) -> None:
        with suppress(IndexError):  # whoever comes too late refuses his own, too
            while True:
                self._requests.popleft().refuse(
                    PortwatchError(f"no more events are read: {self.failure or 'it ended'}")
                )

    def _end(self, subscription: Subscription) -> None:
        self._subscriptions = [one for one in self._subscriptions if one is not subscription]
        for taken in (subscription.roots, subscription.excluded_roots):
            for root in tuple(taken):
                self._unwatch_tree(taken, root)
        if self._subscriptions:
            self._set_kernel_filter(self._subscriptions)

    def _watch_trees(
        self, subscription: Subscription, roots: Iterable[Identity], excluded_roots: Iterable[Identity] = ()
    ) -> None:
        """Has a subscription ask for trees from here on. Raises PortwatchError if one of these ended."""
        for taken, asked in ((subscription.roots, roots), (subscription.excluded_roots, excluded_roots)):
            for root in dict.fromkeys(asked):
                taken[root] = self._acquire_tree(root)
        if excluded_roots or (roots and self._ready.is_set()):
            # What waits to be read may be of these trees and not say so: the kernel did not know them yet.
            self._drain()

    def _report_open_in_trees(self, subscription: Subscription) -> None:
        """Tells a subscription what the trees that it has taken have open."""
        if self._ready.is_set():
            self._reconcile("asked", "snapshot", subscription)

    def _acquire_tree(self, root: Identity) -> int:
        """Has the engine tell of a tree, if it does not yet."""
        tree, is_new = self._trees.acquire(root)
        try:
            if is_new:
                self._engine.watch(root, tree)
        except PortwatchError:
            self._trees.release(root)
            self._engine.unwatch(tree)
            raise
        return tree

    def _unwatch_tree(self, taken: dict[Identity, int], root: Identity) -> None:
        del taken[root]
        tree, is_last = self._trees.release(root)
        if is_last:
            self._engine.unwatch(tree)
            self._table.forget(tree)

    def _set_kernel_filter(
        self, subscriptions: list[Subscription], asked_by: Subscription | None = None
    ) -> None:
        """Has the kernel tell of no more than these want between them."""
        wanted = reduce(or_, (one.kernel_filter for one in subscriptions))
        if wanted == self._filter:
            return
        before = self._filter
        self._filter = self._engine.set_filter(wanted)
        self._table.keep_only(self._filter.passes)
        if before | self._filter != before and self._ready.is_set():
            self._reconcile("asked", "snapshot", asked_by)

    def _add_worker(self) -> None:
        worker = threading.Thread(target=self._work, name="portwatch", daemon=True)
        with self._condition:
            self._workers.append(worker)
            self._needed_workers += 1
        worker.start()

    def _work(self) -> None:
        while (task := self._next_task()) is not None:
            task()

    def _next_task(self) -> Callable[[], None] | None:
        with self._condition:
            while True:
                if self._due:
                    return partial(self._deliver, self._due.popleft())
                if self._stopping:
                    return None
                if not self._has_reader:
                    self._has_reader = True
                    return self._read
                if len(self._workers) > self._needed_workers:
                    self._workers.remove(threading.current_thread())
                    return None
                self._condition.wait()

    def _deliver(self, subscription: Subscription) -> None:
        subscription.deliver()
        with self._condition:
            subscription.is_scheduled = False
            if subscription.ended.is_set():
                self._needed_workers -= 1
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
            log.exception("no more events are read")
            self.failure = error
            self._stopping = True
            self._close_subscriptions()
            self._refuse_requests()
            self._ready.set()
        with self._condition:
            self._has_reader = False
            self._schedule(self._subscriptions)
            self._condition.notify(len(self._workers) if self._stopping else max(1, len(self._due)))

    def _read_once(self) -> None:
        if self._read_error:
            raise self._read_error
        if self._requests:
            while self._requests:
                self._requests.popleft().run()
        elif not self._ready.is_set():
            self._take_first_snapshot()
        elif (left := self._next_check_due() - time.monotonic()) > 0:
            self._apply(self._engine.read(left))
        else:
            self._check()

    def _next_check_due(self) -> float:
        """When the kernel is to be asked next what is open."""
        due = self._next_check
        if self._engine.lost > self.counts.lost:
            due = min(due, self._next_repair)
        if self._may_have_missed():
            due = min(due, self._next_check - self._interval + _CHECK_AFTER_MISSES)
        return max(due, self._retry_at)

    def _may_have_missed(self) -> bool:
        if (now := time.monotonic()) >= self._misses_due:
            self._misses_due = now + _MISSES_INTERVAL
            self._recursion_misses = self._engine.recursion_misses
        return self._recursion_misses > self.counts.recursion_misses

    def _check(self) -> None:
        try:
            if not self.counts.reconciliations:
                self._reconcile("start", "snapshot")
            elif self._engine.lost > self.counts.lost and time.monotonic() >= self._next_repair:
                self._repair()
            else:
                is_due = time.monotonic() >= self._next_check
                self._reconcile("interval" if is_due else "loss", "reconcile")
        except (OSError, PortwatchError) as error:
            self._retry_at = time.monotonic() + _RETRY_AFTER
            log.error("what is open cannot be checked, and is again in %d s: %s", _RETRY_AFTER, error)

    def _drain(self) -> None:
        """Tells everything that has happened so far."""
        if not self._ready.is_set():
            self._take_first_snapshot()
        self._apply(self._engine.read_up_to_now())

    def _take_first_snapshot(self) -> None:
        # What is held is known in tens of milliseconds; /proc/net, which takes as long for a few
        # namespaces, is looked at next, when everybody has been told.
        self._merge(self._engine.snapshot().sockets, "snapshot")
        self._ready.set()

    def _close_subscriptions(self) -> None:
        for subscription in self._subscriptions:
            subscription.close()

    def _apply(self, records: list[Record]) -> None:
        batch = deque(records)
        refusals = BindConflicts(self._engine, self._table, batch)
        while batch:
            record = batch.popleft()
            for event in self._table.apply(record):
                is_taken = event.errno == "EADDRINUSE"
                self._publish(replace(event, held_by=refusals.held_by(record.socket)) if is_taken else event)

    def _repair(self) -> None:
        lost = self._engine.lost
        newly_lost = lost - self.counts.lost
        log.warning("%d records were lost; the table is put right", newly_lost)
        begin = time.monotonic()
        # First what came before the loss: a record that waits must not speak for its socket, whose
        # next one may be what was lost.
        self._apply(self._engine.read_up_to_now())
        self._reconcile("loss", "reconcile")
        self.counts.lost = lost
        # Who loses all the time must not only look: two thirds of it are for reading.
        self._next_repair = time.monotonic() + 2 * (time.monotonic() - begin)
        self._publish(self._table.gap(newly_lost, time.time_ns()))

    def _reconcile(self, reason: str, origin: Origin, asked_by: Subscription | None = None) -> None:
        """Makes the table equal to what the kernel says, whatever happens meanwhile."""
        meanwhile: list[Record] = []
        misses = self._engine.recursion_misses
        try:
            held = cross_checked(
                self._engine.snapshot, lambda: self._run_while_reading(proc_net.read_all, meanwhile)
            )
        except (OSError, PortwatchError):
            self._apply(meanwhile)
            raise
        events = self._merge(held, origin, asked_by, meanwhile)
        self.counts.reconciliations[reason] += 1
        self.counts.recursion_misses = misses
        self._next_check = time.monotonic() + self._interval
        if reason == "start" or origin == "reconcile":
            for event in events:
                self.counts.drift[event.kind] += 1
                log.debug("found %s: %s port %s", event.kind, event.proto, event.port)

    def _run_while_reading(self, work: Callable[[], T], meanwhile: list[Record]) -> T:
        """Has another thread do what takes long where there is much, and adds to `meanwhile` what happens.

        All of /proc takes 50 ms and more, and in a storm much longer, in which the kernel's buffer fills.
        """
        request, is_done = Request(work), threading.Event()

        def run() -> None:
            request.run()
            is_done.set()
            self._engine.wake()

        threading.Thread(target=run, name="portwatch-look", daemon=True).start()
        while not is_done.is_set() and not self._read_error:
            try:
                meanwhile += self._engine.read(_READ_TIMEOUT)
            except Exception as error:  # it ends the reading, behind this, and no check that could come again
                self._read_error = error
        return request.wait()

    def _merge(
        self,
        held: Iterable[OpenSocket],
        origin: Origin,
        asked_by: Subscription | None = None,
        meanwhile: Sequence[Record] = (),
    ) -> list[Event]:
        """The changes that a snapshot shows, told; then those that happened while it was taken."""
        records = [*meanwhile, *self._engine.read_up_to_now()]
        # Only an open or a close settles whether its socket is open.
        pending = {
            name for record in records if record.kind in ("open", "close") for name in socket_ids(record.socket)
        }
        events = self._table.merge(held, time.time_ns(), origin, pending)
        for subscription in self._subscriptions:
            # What was open when somebody began to listen is news to whoever listened already.
            told_as: Origin = origin if asked_by in (None, subscription) else "reconcile"
            for event in events:
                subscription.offer(event if told_as == origin else replace(event, origin=told_as))
            # What was open already, and was found to have come into a tree.
            if subscription.filters_by_tree:
                for event in self._table.replay(time.time_ns(), told_as, subscription.misses):
                    subscription.offer(event)
        self._apply(records)
        return events

    def _publish(self, event: Event) -> None:
        for subscription in self._subscriptions:
            subscription.offer(event)


def _was_open(event: Event) -> bool:
    """Whether an event tells of what was open before somebody began to listen; its close is news."""
    return event.kind == "open" and event.origin == "snapshot"
