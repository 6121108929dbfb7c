"""The daemon: one hub, what follows its events, and who may ask over HTTP."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from aiohttp import web

from portwatch.engines import Choice
from portwatch.errors import PortwatchError
from portwatch.hub import Counts, Hub
from portwatch.model import Listener
from portwatch.outputs.journal import Journal
from portwatch.outputs.metrics import Tally, View
from portwatch.outputs.ports import Shown, ephemeral_ports
from portwatch.server import address, notify
from portwatch.server.api import Api
from portwatch.server.feed import Feed, Output
from portwatch.server.guard import add_headers, guard, in_our_form
from portwatch.server.history import History
from portwatch.server.metrics import Scrapes
from portwatch.server.settings import Settings
from portwatch.server.slow import PATIENCE, SlowConnections
from portwatch.server.stream import Stream
from portwatch.subscription import Subscription
from portwatch.tree import root_at

log = logging.getLogger("portwatch")

_LAST_ANSWERS = 0.3
"""Seconds for answers under way when we end."""
_SWITCH_INTERVAL = 0.001
"""Seconds that a thread may keep the interpreter: an event is not to wait behind a scrape at each step."""
_RELOADABLE = ("scope", "pids", "expected", "metrics")


class Daemon:
    """Runs until it is told to end, or until nothing more can be read."""

    def __init__(
        self,
        settings: Settings,
        *,
        read_again: Callable[[], Settings],
        outputs: Sequence[Output] = (),
        started: Callable[[Choice], object] = lambda _: None,
    ) -> None:
        """`read_again` gives the settings of a reload; `outputs` get each event, `started` the engine."""
        self._settings = settings
        self._read_again = read_again
        self._outputs = outputs
        self._started = started
        self._journal: Journal | None = None
        self._first_seq = 1
        self._hub: Hub | None = None
        self._subscription: Subscription | None = None
        self._tally = Tally()
        self._stream: Stream
        self._feed: Feed
        self._ended: asyncio.Event
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Serves. Raises PortwatchError where it cannot, and when what it reads fails."""
        sys.setswitchinterval(_SWITCH_INTERVAL)
        _allow_many_connections()
        with ExitStack() as stack:
            if self._settings.journal:
                kept = self._settings.journal
                self._journal = Journal(kept.path, max_age=kept.max_age, max_bytes=kept.max_bytes)
                stack.callback(self._journal.close)
                self._journal.start()
            self._first_seq = _first_seq(self._journal.last_seq if self._journal else None)
            sockets = []
            for one in self._settings.listen:
                opened = address.listen(one)
                stack.callback(address.forget, one, opened)
                sockets.append(opened)
            asyncio.run(self._serve(sockets))
        if self._failure:
            raise self._failure

    @property
    def last_seq(self) -> int:
        """The newest event's."""
        return self._stream.last_seq

    def listeners(self) -> Iterator[Listener]:
        """What is open now. Waits a moment: not for the loop's thread."""
        assert self._hub
        assert self._subscription
        admits = self._settings.scope.admits_listener
        return (one for one in self._hub.listeners(self._subscription, look=False) if admits(one))

    def state(self) -> dict[str, Any]:
        """How it does: `ready`, and why not, the engine, what is degraded."""
        if self._hub is None or self._subscription is None:
            return {"ready": False, "engine": None, "hooks": None, "limits": [], "degraded": []}
        capabilities = self._hub.choice.engine.capabilities
        return {
            "ready": self._hub.failure is None,
            "engine": capabilities.engine,
            "hooks": capabilities.hooks,
            "limits": [{"name": one.name, "text": one.text} for one in capabilities.limits],
            "degraded": self._degraded(self._hub),
        }

    def view(self) -> View:
        """What the metrics show. Waits a moment: not for the loop's thread."""
        settings, hub = self._settings, self._hub
        metrics = settings.metrics
        is_ready = self._subscription is not None
        counts = hub.counts if hub else Counts()
        return View(
            listeners=self.listeners() if is_ready else None,
            shown=Shown(
                metrics.pid,
                range(0) if metrics.ephemeral else ephemeral_ports(),
                settings.expected,
                metrics.max_series,
            ),
            engine=self._engine_labels(hub) if hub and is_ready else {},
            counts=counts,
            lost={
                "kernel": counts.lost,
                "subscriber": counts.unheard,
                "journal": self._journal.lost if self._journal else 0,
            },
            subscribers=self._stream.subscribers,
        )

    def _engine_labels(self, hub: Hub) -> dict[str, str]:
        capabilities = hub.choice.engine.capabilities
        lacking = [f"no_{name}" for name in hub.choice.refusals] + [one.name for one in capabilities.limits]
        return {
            "engine": capabilities.engine,
            "kernel": os.uname().release,
            "degraded": ",".join(lacking),
        }

    def _degraded(self, hub: Hub) -> list[str]:
        """What is not as it should be, each in words."""
        found = [f"{name} cannot run here: {error}" for name, error in hub.choice.refusals.items()]
        if hub.failure:
            found.append(f"no more events are read: {hub.failure}")
        if self._journal and self._journal.trouble:
            found.append(f"the journal is not written: {self._journal.trouble}")
        return found

    async def _serve(self, sockets: Sequence[socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._stream = Stream(loop, self._first_seq, self._settings.journal_path)
        outputs: list[Output] = [*self._outputs, self._stream.publish, self._tally]
        if self._journal:
            outputs.insert(0, self._journal.write)
        self._feed = Feed(outputs, lambda: loop.call_soon_threadsafe(self._subscription_ended))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ended.set)
        reloads = asyncio.Event()
        loop.add_signal_handler(signal.SIGHUP, reloads.set)
        slow = SlowConnections()
        runner = web.AppRunner(
            self._app(slow),
            access_log=None,
            handler_cancellation=True,  # a subscriber that goes is known at once
            keepalive_timeout=PATIENCE,
            shutdown_timeout=_LAST_ANSWERS,
        )
        await runner.setup()
        tasks: list[asyncio.Task[None]] = []
        try:
            for opened in sockets:
                await web.SockSite(runner, opened, backlog=address.BACKLOG).start()
            watching = loop.create_task(asyncio.to_thread(self._watch))
            assert runner.server
            tasks = [
                loop.create_task(each)
                for each in (slow.end(runner.server), self._say_alive(), self._reload_when(reloads))
            ]
            ended = loop.create_task(self._ended.wait())
            await asyncio.wait({watching, ended}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                await watching
                notify.notify("READY=1")
            await ended
        except PortwatchError as error:
            self._failure = error
        finally:
            notify.notify("STOPPING=1")
            for task in tasks:
                task.cancel()
            self._stream.close()
            await asyncio.gather(runner.cleanup(), asyncio.to_thread(self._stop))

    def _app(self, slow: SlowConnections) -> web.Application:
        app = web.Application(middlewares=[slow.note, in_our_form, guard(self._settings.hosts)])
        app.on_response_prepare.append(add_headers)
        app.add_routes(Api(self).routes())
        app.add_routes(History(self._settings.journal_path).routes())
        app.add_routes([web.get("/api/v0/events", self._stream.respond)])
        app.add_routes([web.get("/metrics", Scrapes(self.view, self._tally).respond)])
        return app

    def _watch(self) -> None:
        settings = self._settings
        roots = [root_at(pid) for pid in settings.pids] if settings.pids else None
        hub = Hub.open(settings.engine, settings.options, first_seq=self._first_seq)
        has_past = self._journal is not None and self._journal.last_seq is not None
        subscribing = hub.subscribe(settings.scope.admits, roots=roots, resumes=has_past)
        hub.start()
        self._hub = hub
        hub.wait_ready()
        self._started(hub.choice)
        self._subscription = subscribing.wait()
        self._feed.start(self._subscription)

    def _stop(self) -> None:
        if self._hub:
            self._hub.stop()
        self._feed.stop()

    def _subscription_ended(self) -> None:
        """It was replaced, or nothing more can be read."""
        if self._hub and self._hub.failure:
            self._failure = PortwatchError(f"no more events are read: {self._hub.failure}")
            self._ended.set()

    async def _reload_when(self, asked: asyncio.Event) -> None:
        """One reload at a time; what is asked for meanwhile is one more."""
        while await asked.wait():
            asked.clear()
            if self._subscription is None:
                log.warning("not reloaded: the start is not over yet")
                continue
            notify.reloading()
            try:
                await asyncio.to_thread(self._apply, self._read_again())
            except PortwatchError as error:
                log.error("not reloaded, all stays as it was: %s", error)
            else:
                log.warning("reloaded")
            notify.notify("READY=1")

    def _apply(self, settings: Settings) -> None:
        """Goes on with other settings; raises PortwatchError and changes nothing if that cannot be."""
        assert self._hub
        assert self._subscription
        before = self._settings
        for name in Settings.__dataclass_fields__:
            if name not in _RELOADABLE and getattr(settings, name) != getattr(before, name):
                raise PortwatchError(f"{name} cannot change while it runs: restart it")
        if (settings.scope, settings.pids) != (before.scope, before.pids):
            roots = [root_at(pid) for pid in settings.pids] if settings.pids else None
            self._subscription = self._hub.subscribe(
                settings.scope.admits, roots=roots, instead_of=self._subscription
            ).wait()
            self._feed.follow(self._subscription)
        self._settings = settings

    async def _say_alive(self) -> None:
        """To systemd, as long as the loop turns and the hub answers."""
        interval = notify.watchdog_interval()
        while interval:
            await asyncio.sleep(interval / 3)
            if self._hub is None or (
                self._subscription and await asyncio.to_thread(self.listeners) is not None
            ):
                notify.notify("WATCHDOG=1")


def _first_seq(newest: int | None) -> int:
    """More than any that an earlier run gave, also where its last events did not reach the journal.

    So no id of that run is ever taken for one of this one: it would have to have told 1,000 events a
    second from beginning to end.
    """
    return max(time.time_ns() // 1_000_000, (newest or 0) + 1)


def _allow_many_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
