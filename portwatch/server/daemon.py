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

from aiohttp import web

from portwatch.engines import Choice
from portwatch.errors import PortwatchError
from portwatch.outputs.journal import Journal
from portwatch.outputs.metrics import Tally
from portwatch.server import address, notify
from portwatch.server.api import Api
from portwatch.server.feed import Output
from portwatch.server.guard import add_headers, guard, in_our_form
from portwatch.server.history import History
from portwatch.server.known import Known
from portwatch.server.metrics import Scrapes
from portwatch.server.page import Page
from portwatch.server.settings import Settings
from portwatch.server.slow import PATIENCE, SlowConnections
from portwatch.server.stream import Stream
from portwatch.server.watching import Watching

log = logging.getLogger("portwatch")

_LAST_ANSWERS = 0.3
"""Seconds for answers under way when we end."""
_SWITCH_INTERVAL = 0.001
"""Seconds that a thread may keep the interpreter: an event is not to wait behind a scrape at each step."""


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
            sockets = []
            for one in self._settings.listen:
                opened = address.listen(one)
                stack.callback(address.forget, one, opened)
                sockets.append(opened)
            asyncio.run(self._serve(sockets, journal))

    async def _serve(self, sockets: Sequence[socket.socket], journal: Journal | None) -> None:
        loop = asyncio.get_running_loop()
        ended, reloads = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        loop.add_signal_handler(signal.SIGHUP, reloads.set)
        newest = journal.last_seq if journal else None
        first_seq = _first_seq(newest)
        stream, tally = Stream(loop, first_seq, self._settings.journal_path), Tally()
        outputs: list[Output] = [*self._outputs, stream.publish, tally]
        if journal:
            outputs.insert(0, journal.write)
        watching = Watching(self._settings, outputs, lambda: loop.call_soon_threadsafe(ended.set))
        slow = SlowConnections()
        runner = web.AppRunner(
            _app(slow, self._settings, Known(watching, stream, journal), stream, tally),
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
            starting = loop.create_task(
                asyncio.to_thread(watching.start, first_seq, resumes=newest is not None)
            )
            assert runner.server
            tasks = [
                loop.create_task(each)
                for each in (slow.end(runner.server), _say_alive(watching), self._reload(watching, reloads))
            ]
            is_over = loop.create_task(ended.wait())
            await asyncio.wait({starting, is_over}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                self._started((await starting).choice)
                notify.notify("READY=1")
            await is_over
        finally:
            notify.notify("STOPPING=1")
            for task in tasks:
                task.cancel()
            stream.close()
            await asyncio.gather(runner.cleanup(), asyncio.to_thread(watching.stop))
        if watching.hub and watching.hub.failure:
            raise PortwatchError(f"no more events are read: {watching.hub.failure}")

    async def _reload(self, watching: Watching, asked: asyncio.Event) -> None:
        """One at a time; what is asked for meanwhile is one more."""
        while await asked.wait():
            asked.clear()
            if not watching.is_ready:
                log.warning("not reloaded: the start is not over yet")
                continue
            notify.reloading()
            try:
                await asyncio.to_thread(watching.change, self._read_again())
            except PortwatchError as error:
                log.error("not reloaded, all stays as it was: %s", error)
            else:
                log.warning("reloaded")
            notify.notify("READY=1")


def _app(
    slow: SlowConnections, settings: Settings, known: Known, stream: Stream, tally: Tally
) -> web.Application:
    app = web.Application(middlewares=[slow.note, in_our_form, guard(settings.hosts)])
    app.on_response_prepare.append(add_headers)
    app.add_routes(Api(known).routes())
    app.add_routes(History(settings.journal_path).routes())
    app.add_routes([web.get("/", Page().respond)])
    app.add_routes([web.get("/api/v0/events", stream.respond)])
    app.add_routes([web.get("/metrics", Scrapes(known.view, tally).respond)])
    return app


async def _say_alive(watching: Watching) -> None:
    """To systemd, as long as the loop turns and the hub answers."""
    interval = notify.watchdog_interval()
    while interval:
        await asyncio.sleep(interval / 3)
        if watching.is_ready:
            await asyncio.to_thread(watching.listeners)
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
