"""Hub: one engine and one table, shared by all subscribers of a process, and the threads that serve them."""

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
from portwatch.watch.checks import CheckSchedule
from portwatch.watch.counts import Counts
from portwatch.watch.subscription import CAPACITY, Subscription
from portwatch.watch.table import Table, socket_ids
from portwatch.watch.trees import TreeBits

log = logging.getLogger("portwatch")

RECONCILE_INTERVAL = 60.0
"""Seconds between two checks of the table against the kernel."""
_READ_TIMEOUT = 1.0
"""Seconds that a read may block while another thread reads /proc/net."""


T = TypeVar("T")


class Request(Generic[T]):
    """Work for the reader, which is the only thread that may use the engine and the table."""

    def __init__(self, work: Callable[[], T]) -> None:
        self.result: T | None = None
        """What the work returned. None until the work is done."""
        self._work = work
        self._error: Exception | None = None
        self._done = threading.Event()

    def run(self) -> None:
        """Do the work. If it raises an exception, `wait` raises that exception."""
        try:
            self.result = self._work()
        except Exception as error:  # `wait` raises it in the caller; the reader must go on
            log.debug("a request failed", exc_info=True)
            self._error = error
        self._done.set()

    def refuse(self, error: Exception) -> None:
        """Make `wait` raise this exception."""
        self._error = error
        self._done.set()

    def wait(self) -> T:
        """Wait until the work is done. Return its result, or raise its exception."""
        self._done.wait()
        if self._error:
            raise self._error
        return cast("T", self.result)


class Hub:
    """Reads an engine, keeps the table, and offers every event to every subscription.

    Its threads are workers in a leader/followers pattern: the worker that read an event also calls a callback
    with it, and another worker takes over reading. Handing each event to a thread of its own took 50 of the
    150 µs from listen() to the callback (bench/bench_latency.py).

    Invariants:

    - At most one worker reads. It sets `_has_reader` under `_condition`, and clears it after the read.
    - The reader owns the engine, the table, the list of subscriptions and everything about trees and filters.
      Other threads send it a `Request`; only `Engine.wake` is exempt. After `stop` has joined the workers, the
      thread that called `stop` takes the place of the reader.
    - A subscription is scheduled at most once, so two workers never run its callback at the same time.
      `is_scheduled` is True while the subscription is queued in `_scheduled` or a worker delivers its events.
    - There are at least `_workers_needed` workers, one for each callback and one more. So a worker is left to
      read even if every callback blocks.
    - `_condition` guards `_workers`, `_workers_needed`, `_has_reader`, `_scheduled`, and `is_scheduled` of
      every subscription.
    - Every request is run or refused. The thread that sets `_stopping` then refuses the queued requests.
      `_enqueue` reads `_stopping` after it has appended its request, and if it is set, refuses the request
      itself. `_stopping` never becomes False again.
    """

    def __init__(
        self, choice: Choice, reconcile_interval: float = RECONCILE_INTERVAL, first_seq: int = 1
    ) -> None:
        self.choice = choice
        self.counts = Counts()
        self.failure: Exception | None = None
        """Why reading ended, if `stop` did not end it."""
        self._engine: Engine = choice.engine
        self._table = Table(self._engine.name, first_seq)
        self._checks = CheckSchedule(self._engine, self.counts, reconcile_interval)
        self._subscriptions: list[Subscription] = []
        self._requests: deque[Request[Any]] = deque()
        self._trees = TreeBits()
        self._filter = UNRESTRICTED
        """The filter that the engine applies. It passes everything that a subscriber wants."""
        self._workers: list[threading.Thread] = []
        self._workers_needed = 0
        """One to read, and one for each callback."""
        self._condition = threading.Condition()
        self._has_reader = False
        self._scheduled: deque[Subscription] = deque()
        """Subscriptions whose callback has events to deliver."""
        self._stopping = False
        self._read_error: Exception | None = None
        """An error of a read within `_run_while_reading`. The next read raises it."""
        self._ready = threading.Event()
        """Set when the table has the first snapshot, or when reading has ended."""

    @classmethod
    def open(
        cls,
        engine: str,
        options: Options,
        reconcile_interval: float = RECONCILE_INTERVAL,
        first_seq: int = 1,
    ) -> Hub:
        """Return a hub whose engine is attached. Raise EngineUnavailable if no engine works here."""
        choice = choose(engine, options, prove=lambda candidate: candidate.attach())
        return cls(choice, reconcile_interval, first_seq)

    def start(self) -> None:
        """Start reading."""
        self._add_worker()

    def stop(self) -> None:
        """Stop the workers, offer the last events, close every subscription, and detach the engine."""
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
            except Exception:  # the subscriptions must be closed and the engine detached anyway
                log.exception("the last events could not be read")
        self._close_subscriptions()
        self._ready.set()
        self._engine.detach()

    def forget(self) -> None:
        """In a forked child, close the child's copies of the engine's descriptors. The parent's hub goes on."""
        self._engine.forget()

    def is_worker(self) -> bool:
        """Return True if the current thread is one of the workers, as in a callback."""
        return threading.current_thread() in self._workers

    def wait_ready(self) -> None:
        """Wait until the table has the first snapshot, or until reading has ended."""
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
        """Subscribe to the events that pass `admits`. Return a request whose `wait` returns the subscription.

        With `snapshot`, the first events are the opens of the sockets that are open already. `kernel_filter`
        must pass every event that `admits` passes. `roots` restricts the subscription to these process trees,
        and `excluded_roots` leaves trees out. If one of these roots has ended, `wait` raises PortwatchError.

        With `resumes`, the first event is a gap, because events may have been missed since an earlier run.
        `instead_of` is a subscription that the new subscription replaces. The old one ends where the new one
        begins, so that no event is missed or delivered twice.
        """
        subscription = Subscription(
            admits if snapshot else lambda event: not _is_snapshot_open(event) and admits(event),
            callback=callback,
            on_event=on_event,
            on_lag=self._request_catch_up,
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
                if callback:
                    self._add_worker()
            except Exception:
                self._subscriptions = before
                self._end(subscription)
                raise
            if instead_of:
                self._end(instead_of)
                self._close(instead_of)
            return subscription

        request = Request(begin)
        self._enqueue(request)
        return request

    def abandon(self, request: Request[Subscription]) -> None:
        """End the subscription of a request that its caller no longer waits for."""

        def end() -> None:
            if request.result:  # requests run in order: `begin` has run, or was refused
                self._unsubscribe(request.result)

        self._enqueue(Request(end))

    def unsubscribe(self, subscription: Subscription) -> None:
        """Offer a subscription every event so far, then close it. Return before that has happened."""
        self._enqueue(Request(lambda: self._unsubscribe(subscription)))

    def watch(self, subscription: Subscription, root: Identity) -> None:
        """Add a tree to a subscription. The subscription first gets the sockets that the tree has open.

        Raise PortwatchError if the root has ended.
        """

        def watch() -> None:
            if root not in subscription.roots:
                self._watch_trees(subscription, [root])
                self._report_open_in_trees(subscription)

        self._call(watch)

    def unwatch(self, subscription: Subscription, root: Identity) -> None:
        """Remove a tree from a subscription."""
        self._call(lambda: self._unwatch_tree(subscription.roots, root))

    def listeners(self, subscription: Subscription, *, refresh: bool = True) -> Iterator[Listener]:
        """Return the open sockets that pass the subscription's filter by tree.

        With `refresh`, check the table against the kernel first. Otherwise the holders are those of the last
        check.
        """

        def listing() -> Iterator[Listener]:
            self._ensure_first_snapshot()
            if refresh:
                self._reconcile("asked", "reconcile")
            return self._table.listeners(subscription.shows if subscription.filters_by_tree else None)

        return self._call(listing)

    def _enqueue(self, request: Request[Any]) -> None:
        """Pass a request to the reader. Refuse the request if reading has ended."""
        self._requests.append(request)
        if self._stopping:
            self._refuse_requests()
        else:
            self._engine.wake()

    def _call(self, work: Callable[[], T]) -> T:
        """Let the reader do something, and wait for the result."""
        request = Request(work)
        self._enqueue(request)
        return request.wait()

    def _refuse_requests(self) -> None:
        with suppress(IndexError):  # the queue is empty, which ends the loop
            while True:
                self._requests.popleft().refuse(
                    PortwatchError(f"no more events are read: {self.failure or 'the engine was stopped'}")
                )

    def _request_catch_up(self, subscription: Subscription) -> None:
        """Ask the reader to queue a gap for a slow subscriber. Called in the subscriber's thread."""
        self._enqueue(Request(lambda: self._catch_up(subscription)))

    def _catch_up(self, subscription: Subscription) -> None:
        """If a subscriber missed events, give it a gap and the changes that show what is open now."""
        if missed := subscription.take_missed():
            self.counts.subscriber_drops += missed.count
            gap = self._table.gap(missed.count, time.time_ns())
            subscription.catch_up([gap, *self._table.reissue(missed.changes())])

    def _unsubscribe(self, subscription: Subscription) -> None:
        def close() -> None:
            self._close(subscription)
            with self._condition:
                self._schedule([subscription])

        with ExitStack() as stack:  # close even if the engine fails, because a caller may wait for the end
            stack.callback(close)
            stack.callback(self._end, subscription)
            self._drain()

    def _end(self, subscription: Subscription) -> None:
        self._subscriptions = [one for one in self._subscriptions if one is not subscription]
        for roots in (subscription.roots, subscription.excluded_roots):
            for root in tuple(roots):
                self._unwatch_tree(roots, root)
        if self._subscriptions:
            self._set_kernel_filter(self._subscriptions)

    def _watch_trees(
        self, subscription: Subscription, roots: Iterable[Identity], excluded_roots: Iterable[Identity] = ()
    ) -> None:
        """Add trees to a subscription. Raise PortwatchError if a root has ended."""
        for bits, added in ((subscription.roots, roots), (subscription.excluded_roots, excluded_roots)):
            for root in dict.fromkeys(added):
                bits[root] = self._acquire_tree(root)
        if excluded_roots or (roots and self._ready.is_set()):
            # Records that are not read yet may lack the bits of the new trees, because they were made before
            # the kernel knew these trees. Apply them before the subscription starts.
            self._drain()

    def _report_open_in_trees(self, subscription: Subscription) -> None:
        """Offer a subscription the open sockets of its trees."""
        if self._ready.is_set():
            self._reconcile("asked", "snapshot", subscription)

    def _acquire_tree(self, root: Identity) -> int:
        """Return the bit of a tree. If this is its first user, make the engine watch the tree."""
        tree, is_first = self._trees.acquire(root)
        try:
            if is_first:
                self._engine.watch(root, tree)
        except PortwatchError:
            self._trees.release(root)
            self._engine.unwatch(tree)
            raise
        return tree

    def _unwatch_tree(self, roots: dict[Identity, int], root: Identity) -> None:
        del roots[root]
        tree, is_last = self._trees.release(root)
        if is_last:
            self._engine.unwatch(tree)
            if self._ready.is_set():
                # Records that are not read yet may have this bit. Apply them before another tree gets the bit.
                self._apply(self._engine.read_up_to_now())
            self._table.clear_trees(tree)

    def _set_kernel_filter(
        self, subscriptions: list[Subscription], requester: Subscription | None = None
    ) -> None:
        """Set the engine's filter to the union of these subscriptions' filters.

        If the new filter passes more, check the table against the kernel, because the table lacks the sockets
        that the old filter kept out.
        """
        wanted = reduce(or_, (one.kernel_filter for one in subscriptions))
        if wanted == self._filter:
            return
        before = self._filter
        self._filter = self._engine.set_filter(wanted)
        self._table.keep_only(self._filter.passes)
        if before | self._filter != before and self._ready.is_set():
            self._reconcile("asked", "snapshot", requester)

    def _add_worker(self) -> None:
        worker = threading.Thread(target=self._work, name="portwatch", daemon=True)
        with self._condition:
            self._workers.append(worker)
            self._workers_needed += 1
        try:
            _start(worker)
        except PortwatchError:
            with self._condition:
                self._workers.remove(worker)
                self._workers_needed -= 1
            raise

    def _work(self) -> None:
        while (task := self._next_task()) is not None:
            task()

    def _next_task(self) -> Callable[[], None] | None:
        """Wait for a delivery, or for the role of the reader. Return None if this worker must end."""
        with self._condition:
            while True:
                if self._scheduled:
                    return partial(self._deliver, self._scheduled.popleft())
                if self._stopping:
                    return None
                if not self._has_reader:
                    self._has_reader = True
                    return self._read
                if len(self._workers) > self._workers_needed:
                    self._workers.remove(threading.current_thread())
                    return None
                self._condition.wait()

    def _deliver(self, subscription: Subscription) -> None:
        subscription.deliver()
        with self._condition:
            subscription.is_scheduled = False
            if subscription.ended.is_set():
                self._workers_needed -= 1
            self._schedule([subscription])  # again, if events came after `deliver` had emptied the queue

    def _schedule(self, subscriptions: Iterable[Subscription]) -> None:
        """Queue subscriptions for delivery. The caller holds `_condition`."""
        for subscription in subscriptions:
            if subscription.callback and not subscription.is_scheduled and subscription.has_events:
                subscription.is_scheduled = True
                self._scheduled.append(subscription)

    def _read(self) -> None:
        try:
            self._read_once()
        except Exception as error:  # end every subscription, or subscribers would wait for ever
            log.exception("no more events are read")
            self.failure = error
            self._stopping = True
            self._close_subscriptions()
            self._refuse_requests()
            self._ready.set()
        with self._condition:
            self._has_reader = False
            self._schedule(self._subscriptions)
            self._condition.notify(len(self._workers) if self._stopping else max(1, len(self._scheduled)))

    def _read_once(self) -> None:
        if self._read_error:
            raise self._read_error
        if self._requests:
            while self._requests:
                self._requests.popleft().run()
        elif not self._ready.is_set():
            self._ensure_first_snapshot()
        elif (left := self._checks.due() - time.monotonic()) > 0:
            self._apply(self._engine.read(left))
        else:
            self._check()

    def _check(self) -> None:
        try:
            if not self.counts.reconciliations:
                self._reconcile("start", "snapshot")
            elif self._checks.is_repair_due():
                self._repair()
            else:
                self._reconcile("interval" if self._checks.is_interval_over() else "loss", "reconcile")
        except (OSError, PortwatchError) as error:
            log.error("the check of open ports failed, next attempt in %d s: %s", self._checks.failed(), error)

    def _drain(self) -> None:
        """Apply the records of everything that has happened so far."""
        self._ensure_first_snapshot()
        self._apply(self._engine.read_up_to_now())

    def _ensure_first_snapshot(self) -> None:
        """Take the first snapshot, unless it has been taken."""
        if self._ready.is_set():
            return
        # The engine's snapshot takes tens of milliseconds, and reading /proc/net takes as long again.
        # Subscribers get the snapshot first. The first check, which is due at once, then reads /proc/net.
        self._merge(self._engine.snapshot().sockets, "snapshot")
        self._ready.set()

    def _close_subscriptions(self) -> None:
        for subscription in self._subscriptions:
            self._close(subscription)

    def _close(self, subscription: Subscription) -> None:
        self._catch_up(subscription)
        subscription.close()

    def _apply(self, records: list[Record]) -> None:
        """Apply records to the table, and publish the events."""
        batch = deque(records)
        conflicts = BindConflicts(self._engine, self._table, batch)
        while batch:
            record = batch.popleft()
            for event in self._table.apply(record):
                is_conflict = event.errno == "EADDRINUSE"
                self._publish(
                    replace(event, held_by=conflicts.holders_for(record.socket)) if is_conflict else event
                )

    def _repair(self) -> None:
        """Correct the table after a loss, then publish a gap."""
        lost = self._engine.lost
        newly_lost = lost - self.counts.lost
        log.warning("%d records were lost; correcting the table", newly_lost)
        begin = time.monotonic()
        # Apply the unread records before the merge. The merge would not change their sockets (see `pending` in
        # Table.merge), and these sockets could stay wrong if their next records are among the lost ones.
        self._apply(self._engine.read_up_to_now())
        self._reconcile("loss", "reconcile")
        self.counts.lost = lost
        self._checks.repaired(time.monotonic() - begin)
        self._publish(self._table.gap(newly_lost, time.time_ns()))

    def _reconcile(self, reason: str, origin: Origin, requester: Subscription | None = None) -> None:
        """Make the table equal to the kernel's state, and publish the differences."""
        meanwhile: list[Record] = []
        misses = self._engine.recursion_misses
        try:
            open_sockets = cross_checked(
                self._engine.snapshot, lambda: self._run_while_reading(proc_net.read_all, meanwhile)
            )
        except (OSError, PortwatchError):
            self._apply(meanwhile)
            raise
        events = self._merge(open_sockets, origin, requester, meanwhile)
        self.counts.reconciliations[reason] += 1
        self._checks.checked(has_missed=misses > self.counts.recursion_misses, has_found=bool(events))
        self.counts.recursion_misses = misses
        if reason == "start" or origin == "reconcile":
            for event in events:
                self.counts.drift[event.kind] += 1
                log.debug("a check found %s port %s: %s", event.proto, event.port, event.kind)

    def _run_while_reading(self, work: Callable[[], T], meanwhile: list[Record]) -> T:
        """Run `work` in another thread. Add the records that arrive until it is done to `meanwhile`.

        Reading all of /proc/net takes 50 ms or more, and much longer while many sockets open and close. Records
        must not pile up during that time.
        """
        request, is_done = Request(work), threading.Event()

        def run() -> None:
            request.run()
            is_done.set()
            self._engine.wake()

        _start(threading.Thread(target=run, name="portwatch-look", daemon=True))
        while not is_done.is_set() and not self._read_error:
            try:
                meanwhile += self._engine.read(_READ_TIMEOUT)
            except Exception as error:  # must end reading; if raised here, it would count as a failed check
                self._read_error = error
        return request.wait()

    def _merge(
        self,
        snapshot: Iterable[OpenSocket],
        origin: Origin,
        requester: Subscription | None = None,
        meanwhile: Sequence[Record] = (),
    ) -> list[Event]:
        """Merge a snapshot into the table and publish the changes. Then apply the records that came meanwhile.

        `requester` is the subscription for which the snapshot was taken, or None.
        """
        records = [*meanwhile, *self._engine.read_up_to_now()]
        # Other kinds of record do not tell whether the socket is open.
        pending = {
            socket_id
            for record in records
            if record.kind in ("open", "close")
            for socket_id in socket_ids(record.socket)
        }
        events = self._table.merge(snapshot, time.time_ns(), origin, pending)
        for subscription in self._subscriptions:
            # For the requester, these ports were open before it started, so `origin` applies. The other
            # subscriptions should have got them earlier: for these, a check has found the ports.
            origin_here: Origin = origin if requester in (None, subscription) else "reconcile"
            for event in events:
                subscription.offer(event if origin_here == origin else replace(event, origin=origin_here))
            # Also offer sockets that were open before and that a process in one of its trees holds only now,
            # for example because another process passed it a descriptor.
            if subscription.filters_by_tree:
                for event in self._table.replay(time.time_ns(), origin_here, subscription.lacks):
                    subscription.offer(event)
        self._apply(records)
        return events

    def _publish(self, event: Event) -> None:
        for subscription in self._subscriptions:
            subscription.offer(event)


def _start(thread: threading.Thread) -> None:
    """Start a thread. Raise PortwatchError if a limit does not allow another one."""
    try:
        thread.start()
    except RuntimeError as error:
        raise PortwatchError(
            f"cannot start a thread: {error}; raise the limit of threads or of memory (see ulimit -a)"
        ) from error


def _is_snapshot_open(event: Event) -> bool:
    """Return True for the open of a socket that was open before. The close of such a socket is not left out."""
    return event.kind == "open" and event.origin == "snapshot"
