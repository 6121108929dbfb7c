"""Waiting for a port to be listened on, or to be gone: told by events, not by asking again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from portwatch.engines.protocol import Options
from portwatch.event import Event, Listener
from portwatch.port.lookup import PortQuery
from portwatch.watch.watcher import PortWatcher

SocketName = tuple[object, ...]


def watch_port(query: PortQuery, engine: str, options: Options) -> PortWatcher:
    """A watcher, not yet started, of the place that a question is about. Raises PortwatchError."""
    watcher = PortWatcher(
        scope=query.socket_scope,
        not_pids=query.pids.exclude,
        engine=engine,
        failures=options.failures,
        ephemeral=options.ephemeral,
        interval=options.interval,
    )
    for pid in query.pids.include:
        watcher.add_pid(pid)
    return watcher


class PortWait:
    """Which of the sockets that are meant are open, by what a watcher of their place tells."""

    def __init__(self, query: PortQuery, watcher: PortWatcher, shown: Iterable[Listener] = ()) -> None:
        """`watcher` is one for this question, started, and nobody else takes its events.

        The sockets that were `shown` are meant whoever holds them by now.
        """
        self._question = query
        self._shown = {one.socket.inode for one in shown} - {None}
        self._watcher = watcher
        self._open: set[SocketName] = set()

    def until_open(self, timeout: float | None) -> bool:
        """Waits until somebody listens; False if nobody does when `timeout` seconds are over."""
        return self._wait(lambda: bool(self._open), timeout) or bool(self._settled())

    def until_gone(self, timeout: float | None) -> bool:
        """Waits until nobody listens; False if somebody still does when `timeout` seconds are over."""
        return not self._settled() or self._wait(lambda: not self._open, timeout) or not self._settled()

    def remaining(self) -> tuple[Listener, ...]:
        """What of it is open, as the kernel has it now."""
        return tuple(
            one
            for one in self._watcher.listeners()
            if one.socket.inode in self._shown or self._question.select((one,))
        )

    def _wait(self, is_so: Callable[[], bool], timeout: float | None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not is_so():
            remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                self._note(self._watcher.get(remaining))
            except TimeoutError:
                return False
        return True

    def _settled(self) -> set[SocketName]:
        """What is open as the kernel has it now."""
        self._watcher.listeners()  # which tells us first whatever had not been noticed
        self._wait(lambda: False, 0)
        return self._open

    def _note(self, event: Event) -> None:
        name = (event.cookie, event.inode, event.netns, event.proto, event.address, event.port)
        if event.kind == "close":
            self._open.discard(name)  # whoever closed it: that it was meant was settled when it opened
        elif event.kind == "open" and (event.inode in self._shown or self._question.admits(event)):
            self._open.add(name)
