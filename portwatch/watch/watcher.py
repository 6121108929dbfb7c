"""PortWatcher: what programs that embed portwatch use."""

from __future__ import annotations

import threading
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


class _SharedHubs:
    """The hubs of this process: watchers that ask the same of an engine share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hubs: dict[tuple[str, Options, float], Hub] = {}
        self._users: Counter[Hub] = Counter()

    def acquire(self, key: tuple[str, Options, float]) -> tuple[Hub, bool]:
        """The hub for what is asked, and whether it is new (then the caller starts it)."""
        with self._lock:
            hub = self._hubs.get(key)
            is_new = hub is None or hub.failure is not None
            if hub is None or is_new:
                hub = self._hubs[key] = Hub.open(*key)
            self._users[hub] += 1
            return hub, is_new

    def release(self, hub: Hub) -> None:
        """Ends a hub when its last user has gone."""
        with self._lock:
            self._users[hub] -= 1
            if self._users[hub]:
                return
            del self._users[hub]
            self._hubs = {key: one for key, one in self._hubs.items() if one is not hub}
        hub.stop()


_shared_hubs = _SharedHubs()


class PortWatcher:
    """Every port that opens and closes, as it happens: of `pid` and what descends from it, or of all.

    What `not_pids` and their descendants open or hold is left out; what was told before it came into the hands
    of these is told until it closes.

    With `callback`, events are handed to it in order, one at a time, in a thread of
    its own: one that raises is logged, one that is slow gets a `gap`. Without, iterate
    over the watcher (`for` or `async for`). What is open at the start comes first, as
    events with origin "snapshot", unless `snapshot` is False. Watchers in one program share an engine
    where `engine` and all that follows `snapshot` are the same; else each attaches its own.
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
        self._excluded_roots = [root_at(one) for one in not_pids]
        self._callback = callback
        self._scope = scope or Scope()
        self._snapshot = snapshot
        self._key = (engine, Options(failures, ephemeral, interval, hooks), reconcile_interval)
        self._hub: Hub | None = None
        self._subscription: Subscription | None = None
        self._on_event: Callable[[], object] | None = None

    @property
    def choice(self) -> Choice:
        """The engine that was taken, and why better ones were not."""
        return self._running().choice

    @property
    def counts(self) -> Counts:
        """What was lost, checked, and put right so far."""
        return self._running().counts

    def start(self) -> None:
        """Attaches; nothing that happens after this is missed. Raises EngineUnavailable."""
        if self._hub:
            raise PortwatchError("this PortWatcher is started already")
        hub, is_new = _shared_hubs.acquire(self._key)
        self._hub = hub
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
        except BaseException:
            self._hub = None
            _shared_hubs.release(hub)
            raise

    def stop(self) -> None:
        """Ends it, when every event so far has been delivered."""
        hub, self._hub = self._hub, None
        if not hub or not self._subscription:
            return
        hub.unsubscribe(self._subscription)
        if self._callback and not hub.is_worker():
            self._subscription.ended.wait()
        _shared_hubs.release(hub)

    def listeners(self) -> list[Listener]:
        """What is open now, with its holders."""
        hub = self._running()
        assert self._subscription
        return [one for one in hub.listeners(self._subscription) if self._scope.admits_listener(one)]

    def add_pid(self, pid: int) -> None:
        """Takes in a process and all that descends from it, first what these have open.

        From the first one on, nothing else is told. Raises PortwatchError if there is no such process,
        or if this watcher was started without any.
        """
        if self._roots is None:
            if self._hub:
                raise PortwatchError("this PortWatcher hears of everything: make one with PortWatcher(pid)")
            self._roots = []
        root = root_at(pid)
        if self._hub and self._subscription:
            self._hub.watch(self._subscription, root)
        if root not in self._roots:
            self._roots.append(root)

    def remove_pid(self, pid: int) -> None:
        """Leaves the tree of a process out again; with none left, nothing is told."""
        for root in [one for one in self._roots or () if one.pid == pid]:
            if self._hub and self._subscription:
                self._hub.unwatch(self._subscription, root)
            assert self._roots
            self._roots.remove(root)

    def get(self, timeout: float | None = None) -> Event:
        """The next event, without a callback; waits for it, and raises TimeoutError after `timeout` seconds.

        Raises PortwatchError when no more will come.
        """
        self._running()
        assert self._subscription
        try:
            event = self._subscription.get(timeout)
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

    def __iter__(self) -> Iterator[Event]:
        with nullcontext() if self._hub else self:
            assert self._subscription
            while (event := self._subscription.get()) is not None:
                yield event
            self._raise_failure()

    async def __aiter__(self) -> AsyncIterator[Event]:
        import asyncio  # 21 ms, which only those pay who have it already

        arrived = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._on_event = lambda: loop.call_soon_threadsafe(arrived.set)
        try:
            with nullcontext() if self._hub else self:
                assert self._subscription
                while True:
                    try:
                        event = self._subscription.get_nowait()
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

    def _running(self) -> Hub:
        if not self._hub:
            raise PortwatchError("this PortWatcher is not started: use it in a with statement, or call start()")
        return self._hub

    def _raise_failure(self) -> None:
        if self._hub and self._hub.failure:
            raise PortwatchError(f"no more events will come: {self._hub.failure}") from self._hub.failure

    def _notify_loop(self) -> None:
        if on_event := self._on_event:
            on_event()
