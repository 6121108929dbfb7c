"""Look up one port: its listeners, or the processes that prevent a bind to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from portwatch.addresses import WILDCARDS
from portwatch.engines.choice import Choice
from portwatch.engines.protocol import Engine, Options
from portwatch.event import Event, Listener
from portwatch.filters.filter import Filter
from portwatch.filters.scope import Scope
from portwatch.linux import netns
from portwatch.model import Holder, Process, Socket
from portwatch.watch.listing import listing
from portwatch.watch.trees import tree_predicate


@dataclass(frozen=True, slots=True)
class Port:
    """A port number, and the protocols to search."""

    number: int
    protos: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.protos[0]}/{self.number}" if len(self.protos) == 1 else f"port {self.number}"


@dataclass(frozen=True, slots=True)
class PortQuery:
    """Selects the sockets on one port that match a scope and a filter by process tree."""

    port: Port
    scope: Scope
    pids: Filter[int] = field(default_factory=Filter)
    """Pids of the roots of process trees."""

    @property
    def socket_scope(self) -> Scope:
        """The part of the query that depends only on the socket, not on its processes.

        It passes either all events of a socket or none, even if the processes that hold the socket change.
        """
        return Scope(
            port=Filter(((self.port.number, self.port.number),)),
            proto=Filter(self.port.protos),
            exposure=self.scope.exposure,
            netns=self.scope.netns,
        )

    def admits(self, event: Event) -> bool:
        """Return True if an event matches the port and the scope. `pids` is not checked."""
        return self.socket_scope.admits(event) and self.scope.admits(event)

    def select(self, listeners: Iterable[Listener]) -> tuple[Listener, ...]:
        """Return the listeners that match the port and the scope. `pids` is not checked."""
        scopes = (self.socket_scope, self.scope)
        return tuple(
            listener for listener in listeners if all(scope.admits_listener(listener) for scope in scopes)
        )


@dataclass(frozen=True, slots=True)
class LookupResult:
    """The state of a port at one moment."""

    choice: Choice
    """The engine that was used."""
    listeners: tuple[Listener, ...]
    """The listeners that match the query."""
    matching_holders: tuple[Process, ...]
    """The processes that hold `listeners` and match the process filters of the query."""
    all_listeners: tuple[Listener, ...]
    """The listeners on all ports, needed to find the target if a holder only forwards connections."""
    blockers: tuple[Holder, ...] = ()
    """If `listeners` is empty, the processes that prevent a bind to the port."""


def look_up(query: PortQuery, engine: str, options: Options) -> LookupResult:
    """Return the state of a port.

    Raise EngineUnavailable if no engine works, or PortwatchError if a process in `query.pids` has ended.
    """
    with listing(engine, options) as (choice, all_listeners):
        passes_trees = tree_predicate(query.pids, choice.engine.name)
        listeners = tuple(
            listener for listener in query.select(all_listeners) if passes_trees(*listener.holders)
        )
        matching_holders = tuple(
            holder
            for holder in all_holders(listeners)
            if passes_trees(holder) and query.scope.admits_process(holder)
        )
        blockers = () if listeners else _blockers_of(query, choice.engine)
        return LookupResult(choice, listeners, matching_holders, tuple(all_listeners), blockers)


def all_holders(listeners: Iterable[Listener]) -> tuple[Process, ...]:
    """Return the processes that hold these listeners, each only once, the oldest first."""
    holders = {(holder.pid, holder.start_time): holder for listener in listeners for holder in listener.holders}
    return tuple(sorted(holders.values(), key=lambda holder: (holder.start_time or 0, holder.pid)))


def _blockers_of(query: PortQuery, engine: Engine) -> tuple[Holder, ...]:
    # A dual-stack socket on the wildcard address conflicts with every other socket on the port.
    candidates = [
        Socket(None, None, namespace, proto, "ipv6", WILDCARDS["ipv6"], query.port.number, v6only=False)
        for namespace in query.scope.netns.include or (netns.own().inode,)
        for proto in query.port.protos
    ]
    holders = dict.fromkeys(holder for socket in candidates for holder in engine.port_users(socket))
    return tuple(holder for holder in holders if holder.why != "unknown")
