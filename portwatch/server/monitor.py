"""The daemon's own subscription: started, followed, replaced on a reload, and handed on to every output."""

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
"""Takes an event at once; what is slow about it has a queue of its own."""


class Monitor:
    """A hub, and a feed of what it tells. All but `is_ready` and what it keeps may take a moment."""

    def __init__(self, settings: Settings, outputs: Sequence[Output], ended: Callable[[], object]) -> None:
        """`ended` is called when nothing more can be read: `hub.failure` says why."""
        self.settings = settings
        self.hub: Hub | None = None
        self._subscription: Subscription | None = None
        self._output_thread = OutputThread(outputs, self._check)
        self._ended = ended
        self._changing = threading.Lock()
        """Settings and subscription change together."""
        self._ending = threading.Lock()
        self._is_over = False

    @property
    def is_ready(self) -> bool:
        """Whether what was open at the start is known."""
        return self._subscription is not None

    def start(self, first_seq: int, *, resumes: bool) -> Hub:
        """Attaches, and waits until it is ready; `resumes` tells who followed an earlier run of a gap."""
        settings = self.settings
        roots, excluded_roots = _trees(settings)
        hub = Hub.open(settings.engine, settings.options, first_seq=first_seq)
        with self._ending:
            if self._is_over:
                hub.stop()
                raise PortwatchError("it was ended before it had begun")
            self.hub = hub
        subscribing = hub.subscribe(
            settings.scope.admits,
            kernel_filter=settings.scope.kernel_filter,
            roots=roots,
            excluded_roots=excluded_roots,
            resumes=resumes,
        )
        hub.start()
        hub.wait_ready()
        self._subscription = subscribing.wait()
        self._output_thread.start(self._subscription)
        return hub

    def stop(self) -> None:
        """Ends it, when every event so far was handed on."""
        with self._ending:  # an engine that is not open yet closes when it is
            self._is_over = True
        if self.hub:
            self.hub.stop()
        self._output_thread.stop()

    def listeners(self, *, look: bool = False) -> Iterator[Listener]:
        """What is open now, of whom it concerns; with a `look`, with its holders as of now."""
        with self._changing:
            hub, subscription, admits = self.hub, self._subscription, self.settings.scope.admits_listener
        assert hub
        assert subscription
        return (one for one in hub.listeners(subscription, look=look) if admits(one))

    def change(self, settings: Settings) -> None:
        """Goes on with other settings; raises PortwatchError and changes nothing if that cannot be."""
        assert self.hub
        before = self.settings
        changed = [name for name, value in settings.kept.items() if value != before.kept[name]]
        if changed:
            raise PortwatchError(f"{', '.join(changed)} cannot change while it runs: restart it")
        with self._changing:
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

    def _check(self) -> None:
        """A subscription ended: it was replaced, or it was the last."""
        if self.hub and self.hub.failure:
            self._ended()


class OutputThread:
    """Follows a subscription to its end, then the one that took its place."""

    def __init__(self, outputs: Sequence[Output], ended: Callable[[], object]) -> None:
        self._outputs = outputs
        self._ended = ended
        self._next: SimpleQueue[Subscription | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="portwatch-outputs", daemon=True)

    def start(self, subscription: Subscription) -> None:
        """Begins with this one."""
        self._next.put(subscription)
        self._thread.start()

    def follow(self, subscription: Subscription) -> None:
        """Has this one be read when the one before has ended."""
        self._next.put(subscription)

    def stop(self) -> None:
        """Waits until what the ended subscriptions had was handed on."""
        self._next.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while (subscription := self._next.get()) is not None:
            for event in iter(subscription.get, None):
                self._hand_on(event)
            self._ended()

    def _hand_on(self, event: Event) -> None:
        for output in self._outputs:
            try:
                output(event)
            except Exception:  # one output's trouble is not the others'
                log.exception("an output failed")


def _trees(settings: Settings) -> tuple[list[Identity] | None, list[Identity]]:
    """The roots of those that are asked for, if any are, and of those that are left out."""
    pids = settings.pids
    return [root_at(pid) for pid in pids.include] or None, [root_at(pid) for pid in pids.exclude]
