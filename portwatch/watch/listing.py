"""Lists the ports that are open now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from portwatch.engines import Choice, Engine, Options, choose
from portwatch.event import Listener
from portwatch.filters import Filter, Scope
from portwatch.model import OpenSocket, oldest
from portwatch.snapshot import proc_net
from portwatch.snapshot.crosscheck import cross_checked
from portwatch.watch.table import socket_ids
from portwatch.watch.trees import held_by_trees


def list_listeners(
    pid: int | None = None,
    *,
    scope: Scope | None = None,
    not_pids: Sequence[int] = (),
    engine: str = "auto",
    ephemeral: bool = False,
) -> list[Listener]:
    """Return every open port, with all its holders.

    With `pid`, return only the ports that this process and its descendants hold. Descendants that init has
    adopted are not found. Ports that `not_pids` or their descendants hold are left out.

    Raise EngineUnavailable if no engine works here, and PortwatchError if one of the processes does not exist.
    """
    with listing(engine, Options(ephemeral=ephemeral)) as (choice, all_listeners):
        pids = Filter(() if pid is None else (pid,), tuple(not_pids))
        listeners = held_by_trees(pids, all_listeners, choice.engine.name)
        return [one for one in listeners if (scope or Scope()).admits_listener(one)]


@contextmanager
def listing(engine: str, options: Options) -> Iterator[tuple[Choice, list[Listener]]]:
    """Yield the engine that was chosen and every listener that it found. The engine is detached afterwards."""
    snapshot: list[OpenSocket] = []

    def look(candidate: Engine) -> None:
        snapshot[:] = cross_checked(candidate.snapshot, proc_net.read_all)

    choice = choose(engine, options, prove=look)
    try:
        yield choice, list(listeners_of(snapshot, choice.engine.name))
    finally:
        choice.engine.detach()


def listeners_of(snapshot: Iterable[OpenSocket], engine: str) -> Iterator[Listener]:
    """Yield the sockets of a snapshot as listeners, each once."""
    sockets = {socket_ids(one.socket)[0]: one for one in snapshot}.values()
    sockets_at = Counter(one.socket.endpoint for one in sockets)
    for one in sockets:
        count = sockets_at[one.socket.endpoint]
        yield Listener("snapshot", None, one.socket, count, oldest(one.holders), one.holders, engine)
