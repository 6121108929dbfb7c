"""The daemon: connects the monitor, the outputs and the HTTP server, and handles signals."""

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

from portwatch.engines.choice import Choice
from portwatch.errors import PortwatchError
from portwatch.outputs.journal import Journal
from portwatch.outputs.log import EventLog
from portwatch.outputs.metrics import Tally
from portwatch.server import sockets, systemd
from portwatch.server.app import HttpServer
from portwatch.server.journal_queries import JournalQueries
from portwatch.server.monitor import Monitor, Output
from portwatch.server.routes import all_routes
from portwatch.server.settings import Settings
from portwatch.server.state import DaemonState
from portwatch.server.stream import Stream
from portwatch.server.threads import restart_on_failure, run_in_thread
from portwatch.watch.hub import Hub

log = logging.getLogger("portwatch")

_SWITCH_INTERVAL = 0.001
"""Seconds that a thread may keep the GIL while others wait. With Python's default of 5 ms, scrapes would delay
events."""


class Daemon:
    """The daemon. It runs until a signal stops it or until no more events can be read."""

    def __init__(
        self,
        settings: Settings,
        event_log: EventLog,
        *,
        load_settings: Callable[[], Settings],
        on_engine: Callable[[Choice], object] = lambda _: None,
    ) -> None:
        """A reload calls `load_settings`. After the start, `on_engine` is called with the engine in use."""
        self._settings = settings
        self._event_log = event_log
        self._load_settings = load_settings
        self._on_engine = on_engine
        self.is_opening_engine = False
        """True if `run` returned while a thread was still opening the engine. Only process exit ends that
        thread."""

    def run(self) -> None:
        """Run until stopped. Raise PortwatchError if the start fails or if no more events can be read."""
        sys.setswitchinterval(_SWITCH_INTERVAL)
        _raise_file_limit()
        with ExitStack() as stack:
            journal = None
            if options := self._settings.journal:
                journal = Journal(options.path, max_age=options.max_age, max_bytes=options.max_bytes)
                stack.callback(journal.close)
                journal.start()
            listening = []
            for address in self._settings.listen:
                listening.append(sockets.listen(address))
                stack.callback(sockets.close, address, listening[-1])
            asyncio.run(self._serve(listening, journal))

    async def _serve(self, listening: Sequence[socket.socket], journal: Journal | None) -> None:
        loop = asyncio.get_running_loop()
        stop, reload = asyncio.Event(), asyncio.Event()
        for signal_number, event in ((signal.SIGTERM, stop), (signal.SIGINT, stop), (signal.SIGHUP, reload)):
            loop.add_signal_handler(signal_number, event.set)

        journal_seq = journal.last_seq if journal else None
        first_seq = _first_seq(journal_seq)
        journal_queries = JournalQueries(self._settings.journal.path) if self._settings.journal else None
        stream, tally = Stream(loop, first_seq, journal_queries), Tally()
        outputs: list[Output] = [self._event_log, stream.publish, tally]
        if journal:
            outputs.insert(0, journal.write)
        monitor = Monitor(self._settings, outputs, lambda: loop.call_soon_threadsafe(stop.set))
        state = DaemonState(monitor, stream, journal, self._event_log)
        server = HttpServer(all_routes(state, stream, tally, journal_queries), self._settings.hosts)
        tasks: list[asyncio.Task[None]] = []
        try:
            await server.open(listening)
            tasks = [
                loop.create_task(restart_on_failure("the watchdog", partial(_feed_watchdog, monitor))),
                loop.create_task(restart_on_failure("reloading", partial(self._reload, monitor, reload))),
            ]
            await self._monitor_until(stop, partial(monitor.start, first_seq, resumes=journal_seq is not None))
        finally:
            systemd.notify("STOPPING=1")
            for task in tasks:
                task.cancel()
            stream.close()
            await asyncio.gather(server.close(), run_in_thread(monitor.stop))
        if monitor.hub and monitor.hub.failure:
            raise PortwatchError(f"no more events can be read: {monitor.hub.failure}")

    async def _monitor_until(self, stop: asyncio.Event, start: Callable[[], Hub]) -> None:
        """Start the monitor, then wait for `stop`. If `stop` is set during the start, return at once."""
        starting = asyncio.create_task(run_in_thread(start))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            self._on_engine((await starting).choice)
            systemd.notify("READY=1")
        else:
            self.is_opening_engine = True
            starting.cancel()
        await stopping

    async def _reload(self, monitor: Monitor, requested: asyncio.Event) -> None:
        """Reload whenever `requested` is set. Any number of requests during a reload cause one more reload."""
        while await requested.wait():
            requested.clear()
            if not monitor.is_ready:
                log.warning("not reloaded: the daemon is still starting")
                continue
            systemd.reloading()
            try:
                await run_in_thread(lambda: monitor.change(self._load_settings()))
            except PortwatchError as error:
                log.error("not reloaded, the old settings stay in force: %s", error)
            except Exception:
                log.exception("not reloaded, the old settings stay in force")
            else:
                log.info("reloaded")
            finally:
                systemd.notify("READY=1")


async def _feed_watchdog(monitor: Monitor) -> None:
    """Notify systemd's watchdog regularly. The notifications stop if the event loop or the hub hangs."""
    timeout = systemd.watchdog_interval()
    while timeout:
        await asyncio.sleep(timeout / 3)
        if monitor.is_ready:
            await run_in_thread(monitor.listeners)
        systemd.notify("WATCHDOG=1")


def _first_seq(journal_seq: int | None) -> int:
    """Return a sequence number (seq) that is higher than every seq of earlier runs.

    The journal may lack the last events of an earlier run. Therefore the result is at least the time in
    milliseconds. This time is higher than every earlier seq, unless an earlier run had more than 1,000 events a
    second on average or the clock was set back.
    """
    return max(time.time_ns() // 1_000_000, (journal_seq or 0) + 1)


def _raise_file_limit() -> None:
    """Raise the soft limit on open files to the hard limit, because each connection is an open file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
