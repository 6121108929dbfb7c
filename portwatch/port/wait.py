"""Wait until a port is open, or until a port is closed. Events end the wait, so nothing is polled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from portwatch.engines.protocol import Options
from portwatch.event import Event, Listener
from portwatch.port.lookup import PortQuery
from portwatch.watch.watcher import PortWatcher

SocketKey = tuple[object, ...]


def watch_port(query: PortQuery, engine: str, options: Options) -> PortWatcher:
    """Return a watcher for the sockets of a query. The caller must start the watcher.

    Raise PortwatchError if the root of a process tree has ended.
    """
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
    """Tracks which sockets of a query are open, with the events of a watcher."""

    def __init__(self, query: PortQuery, watcher: PortWatcher, shown: Iterable[Listener] = ()) -> None:
        """`watcher` must come from `watch_port` with the same query, be started, and have no other reader.

        The sockets in `shown` are tracked even if they no longer match the query because their holders changed.
        """
        self._query = query
        self._shown = {listener.socket.inode for listener in shown} - {None}
        self._watcher = watcher
        self._open: set[SocketKey] = set()

    def until_open(self, timeout: float | None) -> bool:
        """Wait until a socket is open. Return False if no socket is open after `timeout` seconds."""
        return self._wait(lambda: bool(self._open), timeout) or bool(self._open_now())

    def until_gone(self, timeout: float | None) -> bool:
        """Wait until no socket is open. Return False if a socket is still open after `timeout` seconds."""
        return not self._open_now() or self._wait(lambda: not self._open, timeout) or not self._open_now()

    def remaining(self) -> tuple[Listener, ...]:
        """Return the sockets that are open now."""
        return tuple(
            listener
            for listener in self._watcher.listeners()
            if listener.socket.inode in self._shown or self._query.select((listener,))
        )

    def _wait(self, is_done: Callable[[], bool], timeout: float | None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not is_done():
            remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                self._apply(self._watcher.get(remaining))
            except TimeoutError:
                return False
        return True

    def _open_now(self) -> set[SocketKey]:
        """Compare with the kernel, then return the sockets that are open."""
        self._watcher.listeners()  # compares with the kernel, and queues events for changes that were missed
        self._wait(lambda: False, 0)
        return self._open

    def _apply(self, event: Event) -> None:
        key = (event.cookie, event.inode, event.netns, event.proto, event.address, event.port)
        if event.kind == "close":
            self._open.discard(key)  # without `admits`: an excluded process may close it
        elif event.kind == "open" and (event.inode in self._shown or self._query.admits(event)):
            self._open.add(key)
