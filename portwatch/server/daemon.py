"""The daemon's life: it opens what it needs, answers over HTTP, and ends as it is told to."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from aiohttp import web

from portwatch.engines.choice import Choice
from portwatch.errors import PortwatchError
from portwatch.outputs.journal import Journal
from portwatch.outputs.log import EventLog
from portwatch.outputs.metrics import Tally
from portwatch.server import sockets, systemd
from portwatch.server.app import HttpServer
from portwatch.server.journal_queries import JournalQueries
from portwatch.server.listings import Listings
from portwatch.server.monitor import Monitor, Output
from portwatch.server.routes import (
    events,
    health,
    history,
    listening_ports,
    metrics,
    openapi,
    page,
    who,
)
from portwatch.server.settings import Settings
from portwatch.server.state import DaemonState
from portwatch.server.stream import Stream
from portwatch.server.threads import restart_on_failure, run_in_thread

log = logging.getLogger("portwatch")

_SWITCH_INTERVAL = 0.001
"""Seconds that a thread may keep the interpreter: an event is not to wait behind a scrape at each step."""


class Daemon:
    """Runs until it is told to end, or until nothing more can be read."""

    def __init__(
        self,
        settings: Settings,
        changes: EventLog,
        *,
        read_again: Callable[[], Settings],
        started: Callable[[Choice], object] = lambda _: None,
    ) -> None:
        """`changes` gets each event, `started` the engine; `read_again` gives the settings of a reload."""
        self._settings = settings
        self._changes = changes
        self._read_again = read_again
        self._started = started
        self.is_opening = False
        """Whether an engine is still being opened, in a thread that nothing can end but the end of all."""

    def run(self) -> None:
        """Serves. Raises PortwatchError where it cannot, and when what it reads fails."""
        sys.setswitchinterval(_SWITCH_INTERVAL)
        _allow_many_connections()
        with ExitStack() as stack:
            journal = None
            if kept := self._settings.journal:
                journal = Journal(kept.path, max_age=kept.max_age, max_bytes=kept.max_bytes)
                stack.callback(journal.close)
                journal.start()
            listening_sockets = []
            for one in self._settings.listen:
                listening = sockets.listen(one)
                stack.callback(sockets.forget, one, listening)
                listening_sockets.append(listening)
            asyncio.run(self._serve(listening_sockets, journal))

    async def _serve(self, listening: Sequence[socket.socket], journal: Journal | None) -> None:
        loop = asyncio.get_running_loop()
        ended, reloads = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        loop.add_signal_handler(signal.SIGHUP, reloads.set)
        newest = journal.last_seq if journal else None
        first_seq = _first_seq(newest)
        journal_queries = JournalQueries(self._settings.journal.path) if self._settings.journal else None
        stream, tally = Stream(loop, first_seq, journal_queries), Tally()
        outputs: list[Output] = [self._changes, stream.publish, tally]
        if journal:
            outputs.insert(0, journal.write)
        monitor = Monitor(self._settings, outputs, lambda: loop.call_soon_threadsafe(ended.set))
        state = DaemonState(monitor, stream, journal, self._changes)
        server = HttpServer(_routes(state, journal_queries, stream, tally), self._settings.hosts)
        tasks: list[asyncio.Task[None]] = []
        try:
            await server.open(listening)
            starting = loop.create_task(
                run_in_thread(partial(monitor.start, first_seq, resumes=newest is not None))
            )
            tasks = [
                loop.create_task(restart_on_failure("telling systemd", partial(_say_alive, monitor))),
                loop.create_task(restart_on_failure("reloading", partial(self._reload, monitor, reloads))),
            ]
            is_over = loop.create_task(ended.wait())
            await asyncio.wait({starting, is_over}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                self._started((await starting).choice)
                systemd.notify("READY=1")
            else:
                self.is_opening = True
                starting.cancel()
            await is_over
        finally:
            systemd.notify("STOPPING=1")
            for task in tasks:
                task.cancel()
            stream.close()
            await asyncio.gather(server.close(), run_in_thread(monitor.stop))
        if monitor.hub and monitor.hub.failure:
            raise PortwatchError(f"no more events are read: {monitor.hub.failure}")

    async def _reload(self, monitor: Monitor, asked: asyncio.Event) -> None:
        """One at a time; what is asked for meanwhile is one more."""
        while await asked.wait():
            asked.clear()
            if not monitor.is_ready:
                log.warning("not reloaded: the start is not over yet")
                continue
            systemd.reloading()
            try:
                await run_in_thread(lambda: monitor.change(self._read_again()))
            except PortwatchError as error:
                log.error("not reloaded, all stays as it was: %s", error)
            except Exception:
                log.exception("not reloaded, all stays as it was")
            else:
                log.info("reloaded")
            finally:
                systemd.notify("READY=1")


def _routes(
    state: DaemonState, journal: JournalQueries | None, stream: Stream, tally: Tally
) -> list[web.RouteDef]:
    listings = Listings(state)
    return [
        *page.routes(),
        *metrics.routes(state, tally),
        *listening_ports.routes(state, listings),
        *who.routes(listings),
        *events.routes(stream),
        *history.routes(journal),
        *health.routes(state),
        *openapi.routes(),
    ]


async def _say_alive(monitor: Monitor) -> None:
    """To systemd, as long as the loop turns and the hub answers."""
    interval = systemd.watchdog_interval()
    while interval:
        await asyncio.sleep(interval / 3)
        if monitor.is_ready:
            await run_in_thread(monitor.listeners)
        systemd.notify("WATCHDOG=1")


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
