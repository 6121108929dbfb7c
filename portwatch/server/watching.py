"""The daemon's own subscription: begun, followed, and replaced when other settings say whom it concerns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from portwatch.errors import PortwatchError
from portwatch.hub import Hub
from portwatch.model import Listener
from portwatch.server.feed import Feed, Output
from portwatch.server.settings import Settings
from portwatch.subscription import Subscription
from portwatch.tree import Identity, root_at


class Watching:
    """A hub, and a feed of what it tells. All but `is_ready` and what it keeps may take a moment."""

    def __init__(self, settings: Settings, outputs: Sequence[Output], ended: Callable[[], object]) -> None:
        """`ended` is called when nothing more can be read: `hub.failure` says why."""
        self.settings = settings
        self.hub: Hub | None = None
        self._subscription: Subscription | None = None
        self._feed = Feed(outputs, self._check)
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
        roots, unwanted = _trees(settings)
        hub = Hub.open(settings.engine, settings.options, first_seq=first_seq)
        with self._ending:
            if self._is_over:
                hub.stop()
                raise PortwatchError("it was ended before it had begun")
            self.hub = hub
        subscribing = hub.subscribe(
            settings.scope.admits,
            width=settings.scope.width,
            roots=roots,
            unwanted=unwanted,
            resumes=resumes,
        )
        hub.start()
        hub.wait_ready()
        self._subscription = subscribing.wait()
        self._feed.start(self._subscription)
        return hub

    def stop(self) -> None:
        """Ends it, when every event so far was handed on."""
        with self._ending:  # an engine that is not open yet closes when it is
            self._is_over = True
        if self.hub:
            self.hub.stop()
        self._feed.stop()

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
                roots, unwanted = _trees(settings)
                self._subscription = self.hub.subscribe(
                    settings.scope.admits,
                    width=settings.scope.width,
                    roots=roots,
                    unwanted=unwanted,
                    instead_of=self._subscription,
                ).wait()
                self._feed.follow(self._subscription)
            self.settings = settings

    def _check(self) -> None:
        """A subscription ended: it was replaced, or it was the last."""
        if self.hub and self.hub.failure:
            self._ended()


def _trees(settings: Settings) -> tuple[list[Identity] | None, list[Identity]]:
    """The roots of those that are asked for, if any are, and of those that are left out."""
    pids = settings.pids
    return [root_at(pid) for pid in pids.wanted] or None, [root_at(pid) for pid in pids.unwanted]
