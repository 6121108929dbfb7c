"""The daemon's own subscription to port events, and the thread that passes them to the outputs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue

from portwatch.errors import PortwatchError
from portwatch.event import Event, Listener
from portwatch.linux.lineage import Identity, root_at
from portwatch.server.settings import Settings
from portwatch.watch.hub import Hub
from portwatch.watch.subscription import Subscription

log = logging.getLogger("portwatch")

Output = Callable[[Event], object]
"""A function that receives every event. It must not block: an output that does slow work has its own queue."""


class Monitor:
    """A hub and one subscription to it. Every event of the subscription goes to every output.

    Reading `is_ready`, `hub` and `settings` never blocks. The methods may block: never call them in the event
    loop's thread.
    """

    def __init__(self, settings: Settings, outputs: Sequence[Output], on_failure: Callable[[], object]) -> None:
        """`on_failure` is called when no more events can be read. `hub.failure` then holds the reason."""
        self.settings = settings
        self.hub: Hub | None = None
        self._subscription: Subscription | None = None
        self._output_thread = OutputThread(outputs, self._subscription_ended)
        self._on_failure = on_failure
        self._settings_lock = threading.Lock()
        """Guards `settings` and `_subscription`, which change together."""
        self._start_lock = threading.Lock()
        """Guards `_is_stopped` and the assignment of `hub`. After `stop`, `start` closes its engine."""
        self._is_stopped = False

    @property
    def is_ready(self) -> bool:
        """True once the first snapshot has been taken."""
        return self._subscription is not None

    def start(self, first_seq: int, *, resumes: bool) -> Hub:
        """Open the engine and return when the first snapshot has been taken.

        With `resumes`, the outputs receive a gap first: events may have been missed since the daemon last ran.
        """
        settings = self.settings
        roots, excluded_roots = _trees(settings)
        hub = Hub.open(settings.engine, settings.options, first_seq=first_seq)
        with self._start_lock:
            if self._is_stopped:
                hub.stop()
                raise PortwatchError("the daemon was stopped before its engine was open")
            self.hub = hub
        request = hub.subscribe(
            settings.scope.admits,
            kernel_filter=settings.scope.kernel_filter,
            roots=roots,
            excluded_roots=excluded_roots,
            resumes=resumes,
        )
        hub.start()
        hub.wait_ready()
        self._subscription = request.wait()
        self._output_thread.start(self._subscription)
        return hub

    def stop(self) -> None:
        """Stop the hub and return when the outputs have received every event.

        If `start` is still opening the engine, `start` closes the engine afterwards.
        """
        with self._start_lock:
            self._is_stopped = True
        if self.hub:
            self.hub.stop()
        self._output_thread.stop()

    def listeners(self, *, refresh: bool = False) -> Iterator[Listener]:
        """Return the open ports within the scope. With `refresh`, read their holders from the kernel first."""
        with self._settings_lock:
            hub, subscription, admits = self.hub, self._subscription, self.settings.scope.admits_listener
        assert hub
        assert subscription
        return (listener for listener in hub.listeners(subscription, refresh=refresh) if admits(listener))

    def change(self, settings: Settings) -> None:
        """Apply new settings. If they need a restart, raise PortwatchError and change nothing."""
        assert self.hub
        before = self.settings
        changed = [name for name, value in settings.fixed.items() if value != before.fixed[name]]
        if changed:
            raise PortwatchError(f"{', '.join(changed)} cannot change while the daemon runs: restart it")
        with self._settings_lock:
            if (settings.scope, settings.pids) != (before.scope, before.pids):
                roots, excluded_roots = _trees(settings)
                self._subscription = self.hub.subscribe(
                    settings.scope.admits,
                    kernel_filter=settings.scope.kernel_filter,
                    roots=roots,
                    excluded_roots=excluded_roots,
                    instead_of=self._subscription,
                ).wait()
                self._output_thread.follow(self._subscription)
            self.settings = settings

    def _subscription_ended(self) -> None:
        """Call `on_failure` if the hub has failed. Otherwise `change` or `stop` ended the subscription."""
        if self.hub and self.hub.failure:
            self._on_failure()


class OutputThread:
    """A thread that reads subscriptions, one after another, and passes each event to the outputs."""

    def __init__(self, outputs: Sequence[Output], on_end: Callable[[], object]) -> None:
        """`on_end` is called when a subscription has ended."""
        self._outputs = outputs
        self._on_end = on_end
        self._subscriptions: SimpleQueue[Subscription | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="portwatch-outputs", daemon=True)

    def start(self, subscription: Subscription) -> None:
        """Start the thread, which reads this subscription first."""
        self._subscriptions.put(subscription)
        self._thread.start()

    def follow(self, subscription: Subscription) -> None:
        """Read this subscription when the current one has ended."""
        self._subscriptions.put(subscription)

    def stop(self) -> None:
        """Wait until every event has been passed on. Call this only after every subscription has ended."""
        self._subscriptions.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while (subscription := self._subscriptions.get()) is not None:
            for event in iter(subscription.get, None):
                self._pass_on(event)
            self._on_end()

    def _pass_on(self, event: Event) -> None:
        for output in self._outputs:
            try:
                output(event)
            except Exception:  # the other outputs still receive the event
                log.exception("an output failed")


def _trees(settings: Settings) -> tuple[list[Identity] | None, list[Identity]]:
    """Return the roots of the included process trees (None for all processes) and of the excluded trees."""
    pids = settings.pids
    return [root_at(pid) for pid in pids.include] or None, [root_at(pid) for pid in pids.exclude]
