"""PortWatcher, the class that programs embed."""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import nullcontext
from queue import Empty
from types import TracebackType

from portwatch.engines import Choice, Options
from portwatch.errors import PortwatchError
from portwatch.event import Event, Listener
from portwatch.filters import Scope
from portwatch.linux.lineage import Identity, root_at
from portwatch.watch.counts import Counts
from portwatch.watch.hub import RECONCILE_INTERVAL, Hub
from portwatch.watch.subscription import Subscription

_NOT_STARTED = "this PortWatcher is not started: use it in a with statement, or call start()"


class _SharedHubs:
    """The hubs of this process. Watchers with the same engine and options share one."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._hubs: dict[tuple[str, Options, float], Hub] = {}
        self._users: Counter[Hub] = Counter()

    def acquire(self, key: tuple[str, Options, float]) -> tuple[Hub, bool]:
        """Return the hub for these options, and whether it is new. The caller must start a new hub."""
        with self._lock:
            hub = self._hubs.get(key)
            is_new = hub is None or hub.failure is not None
            if hub is None or is_new:
                hub = self._hubs[key] = Hub.open(*key)
            self._users[hub] += 1
            return hub, is_new

    def release(self, hub: Hub) -> None:
        """Give a hub back. Stop it if this was its last user."""
        with self._lock:
            self._users[hub] -= 1
            if self._users[hub]:
                return
            del self._users[hub]
            self._hubs = {key: other for key, other in self._hubs.items() if other is not hub}
        hub.stop()

    def forget_parents(self) -> None:
        """In a forked child, give up the parent's hubs, because their threads exist only in the parent."""
        hubs = list(self._users)
        self._reset()
        for hub in hubs:
            hub.forget()


_shared_hubs = _SharedHubs()
_started: weakref.WeakSet[PortWatcher] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for watcher in list(_started):
        watcher._forget_parents()
    _started.clear()
    _shared_hubs.forget_parents()


os.register_at_fork(after_in_child=_after_fork_in_child)


class PortWatcher:
    """Reports every port that opens or closes, as it happens.

    Without `pid`, it watches the whole machine. With `pid`, it watches that process and its descendants. The
    processes `not_pids` and their descendants are left out. If one of them gets a socket that was already
    reported, the close of that socket is still reported. `scope` filters further.

    If `callback` is given, it is called with each event, in order and one at a time, in background threads. If
    the callback raises an exception, the exception is logged, and the next event follows. Without a callback,
    iterate over the watcher (`for` or `async for`), or call `get`. A reader or a callback that falls too far
    behind gets one event of kind "gap" in place of the events that it missed.

    The ports that are open at the start come first, as events with origin "snapshot". If `snapshot` is False,
    they are left out.

    Other options:

    - `engine`: "core", "bcc", "poll", or "auto" for the best engine that works here.
    - `failures`: also report binds and listens that fail.
    - `ephemeral`: also report UDP ports that the kernel chose.
    - `interval`: seconds between two polls of the poll engine.
    - `hooks`: the hooks of the core engine: "fentry", "stable" or "auto".
    - `reconcile_interval`: seconds between two checks against the kernel.

    Watchers in one process share an engine if all of these options are equal.

    After a fork, the parent's watchers go on. In the child, a watcher that was started before the fork starts
    again when the child next uses it, with an engine of the child's own. A watcher with a callback starts again
    when the child calls `start`.
    """

    def __init__(
        self,
        pid: int | None = None,
        callback: Callable[[Event], object] | None = None,
        *,
        scope: Scope | None = None,
        not_pids: Sequence[int] = (),
        engine: str = "auto",
        snapshot: bool = True,
        failures: bool = True,
        ephemeral: bool = False,
        interval: float = 1.0,
        hooks: str = "auto",
        reconcile_interval: float = RECONCILE_INTERVAL,
    ) -> None:
        self._roots: list[Identity] | None = None if pid is None else [root_at(pid)]
        self._excluded_roots = [root_at(excluded) for excluded in not_pids]
        self._callback = callback
        self._scope = scope or Scope()
        self._snapshot = snapshot
        self._key = (engine, Options(failures, ephemeral, interval, hooks), reconcile_interval)
        self._hub: Hub | None = None
        self._subscription: Subscription | None = None
        self._was_forked = False
        """True in a forked child if the parent had started this watcher, until the child starts or stops it."""
        self._on_event: Callable[[], object] | None = None

    @property
    def choice(self) -> Choice:
        """The engine in use, and the reasons why better engines are not in use."""
        return self._running().choice

    @property
    def counts(self) -> Counts:
        """Losses, checks and corrections so far."""
        return self._running().counts

    def start(self) -> None:
        """Attach the engine. Everything that happens after `start` has returned is reported.

        Raise EngineUnavailable, with the reason, if no engine works here.
        """
        if self._hub:
            raise PortwatchError("this PortWatcher is already started")
        hub, is_new = _shared_hubs.acquire(self._key)
        self._hub = hub
        subscribing = None
        try:
            subscribing = hub.subscribe(
                self._scope.admits,
                callback=self._callback,
                on_event=self._notify_loop,
                snapshot=self._snapshot,
                kernel_filter=self._scope.kernel_filter,
                roots=self._roots,
                excluded_roots=self._excluded_roots,
            )
            if is_new:
                hub.start()
            self._subscription = subscribing.wait()
            self._was_forked = False
            _started.add(self)
        except BaseException:
            self._hub = None
            if subscribing:
                hub.abandon(subscribing)
            _shared_hubs.release(hub)
            raise

    def stop(self) -> None:
        """Stop, after the callback has been called with every event so far. The callback may call `stop`.

        Do nothing if the watcher is not started.
        """
        hub, self._hub = self._hub, None
        self._was_forked = False
        if not hub or not self._subscription:
            return
        _started.discard(self)
        hub.unsubscribe(self._subscription)
        if self._callback and not hub.is_worker():
            self._subscription.ended.wait()
        _shared_hubs.release(hub)

    def listeners(self) -> list[Listener]:
        """Return the ports that are open now, each with all its holders."""
        hub, subscription = self._running(), self._subscribed()
        return [listener for listener in hub.listeners(subscription) if self._scope.admits_listener(listener)]

    def add_pid(self, pid: int) -> None:
        """Also watch a process and its descendants. The ports that they have open are reported first.

        A watcher that was created without `pid` watches the whole machine. A call of `add_pid` before `start`
        restricts it to process trees, and a first call after `start` raises PortwatchError. Raise
        PortwatchError also if there is no such process.
        """
        if self._roots is None:
            if self._hub:
                raise PortwatchError(
                    "this PortWatcher watches the whole machine: to watch process trees, create one with "
                    "PortWatcher(pid)"
                )
            self._roots = []
        root = root_at(pid)
        if self._hub and self._subscription:
            self._hub.watch(self._subscription, root)
        if root not in self._roots:
            self._roots.append(root)

    def remove_pid(self, pid: int) -> None:
        """Stop watching a process and its descendants. If no process is left, nothing is reported."""
        for root in [root for root in self._roots or () if root.pid == pid]:
            if self._hub and self._subscription:
                self._hub.unwatch(self._subscription, root)
            assert self._roots
            self._roots.remove(root)

    def get(self, timeout: float | None = None) -> Event:
        """Wait for the next event and return it, for a watcher without a callback.

        Raise TimeoutError after `timeout` seconds, and PortwatchError if no more events will come.
        """
        try:
            self._running()
            event = self._subscribed().get(timeout)
        except Empty:
            raise TimeoutError(f"no event came within {timeout} seconds") from None
        if event is None:
            self._raise_failure()
            raise PortwatchError("no more events will come: this PortWatcher was stopped")
        return event

    def __enter__(self) -> PortWatcher:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> PortWatcher:
        """Start in a thread: attaching takes longer than an event loop may be blocked."""
        import asyncio

        starting = asyncio.ensure_future(asyncio.to_thread(self.start))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait([starting])  # `start` cannot be interrupted; undo it when it is done
            await asyncio.to_thread(self.stop)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import asyncio

        await asyncio.to_thread(self.stop)

    def __iter__(self) -> Iterator[Event]:
        """Yield events until the watcher is stopped. Start and stop it here if it is not started."""
        with self._unless_started():
            while (event := self._subscribed().get()) is not None:
                yield event
            self._raise_failure()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield events until the watcher is stopped. Start and stop it here if it is not started."""
        import asyncio  # imported here because it takes 21 ms, and other programs do not need it

        arrived = asyncio.Event()
        loop = asyncio.get_running_loop()
        is_waking = False

        def wake() -> None:
            nonlocal is_waking
            is_waking = False  # before the queue is read, so that a later event wakes the loop again
            arrived.set()

        def on_event() -> None:
            nonlocal is_waking
            if not is_waking:  # one wake-up for all events that come before the loop runs
                is_waking = True
                loop.call_soon_threadsafe(wake)

        self._on_event = on_event
        try:
            async with self._unless_started():
                while True:
                    try:
                        event = self._subscribed().get_nowait()
                    except Empty:
                        await arrived.wait()
                        arrived.clear()
                        continue
                    if event is None:
                        self._raise_failure()
                        return
                    yield event
        finally:
            self._on_event = None

    def _unless_started(self) -> PortWatcher | nullcontext[None]:
        return nullcontext() if self._hub or self._was_forked else self

    def _subscribed(self) -> Subscription:
        """Return the subscription. After `stop`, it still has the events from before `stop`."""
        if self._was_forked:
            self.start()
        if not self._subscription:
            raise PortwatchError(_NOT_STARTED)
        return self._subscription

    def _forget_parents(self) -> None:
        """In a forked child, forget the parent's hub, so that the watcher can be started again."""
        self._hub = self._subscription = None
        self._was_forked = True

    def _running(self) -> Hub:
        if self._was_forked:
            self.start()
        if not self._hub:
            raise PortwatchError(_NOT_STARTED)
        return self._hub

    def _raise_failure(self) -> None:
        if self._hub and self._hub.failure:
            raise PortwatchError(f"no more events will come: {self._hub.failure}") from self._hub.failure

    def _notify_loop(self) -> None:
        if on_event := self._on_event:
            on_event()
