"""Look up one port: its listeners, or what else keeps it from being bound."""

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
    """A port number, and the protocols to look at."""

    number: int
    protos: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.protos[0]}/{self.number}" if len(self.protos) == 1 else f"port {self.number}"


@dataclass(frozen=True, slots=True)
class PortQuery:
    """Selects sockets: those on a port that pass a scope and a filter by process tree."""

    port: Port
    scope: Scope
    pids: Filter[int] = field(default_factory=Filter)
    """The roots of process trees."""

    @property
    def socket_scope(self) -> Scope:
        """The part of the query that is about the socket alone.

        It passes all events of a socket or none, whichever processes hold the socket over time.
        """
        return Scope(
            port=Filter(((self.port.number, self.port.number),)),
            proto=Filter(self.port.protos),
            exposure=self.scope.exposure,
            netns=self.scope.netns,
        )

    def admits(self, event: Event) -> bool:
        """Return True if an event passes, process trees aside."""
        return self.socket_scope.admits(event) and self.scope.admits(event)

    def select(self, listeners: Iterable[Listener]) -> tuple[Listener, ...]:
        """Return the listeners that pass, process trees aside."""
        scopes = (self.socket_scope, self.scope)
        return tuple(one for one in listeners if all(scope.admits_listener(one) for scope in scopes))


@dataclass(frozen=True, slots=True)
class LookupResult:
    """The state of a port at one moment."""

    choice: Choice
    """The engine that was used."""
    listeners: tuple[Listener, ...]
    """The listeners that match the query."""
    matching_holders: tuple[Process, ...]
    """The holders of `listeners` that match the query themselves. A socket may have others too."""
    all_listeners: tuple[Listener, ...]
    """The listeners of all ports: a forwarder's target is among them."""
    blockers: tuple[Holder, ...] = ()
    """If there are no listeners: processes that keep the port from being bound."""


def look_up(query: PortQuery, engine: str, options: Options) -> LookupResult:
    """Return the state of a port. Raise EngineUnavailable, and PortwatchError if a root in `pids` has ended."""
    with listing(engine, options) as (choice, all_listeners):
        passes_trees = tree_predicate(query.pids, choice.engine.name)
        listeners = tuple(one for one in query.select(all_listeners) if passes_trees(*one.holders))
        matching_holders = tuple(
            one for one in holders_of(listeners) if passes_trees(one) and query.scope.admits_process(one)
        )
        blockers = () if listeners else _blockers_of(query, choice.engine)
        return LookupResult(choice, listeners, matching_holders, tuple(all_listeners), blockers)


def holders_of(listeners: Iterable[Listener]) -> tuple[Process, ...]:
    """Return the processes that hold these listeners, each once, the oldest first."""
    holders = {(holder.pid, holder.start_time): holder for one in listeners for holder in one.holders}
    return tuple(sorted(holders.values(), key=lambda holder: (holder.start_time or 0, holder.pid)))


def _blockers_of(query: PortQuery, engine: Engine) -> tuple[Holder, ...]:
    # A dual-stack socket on every address conflicts with any other socket on the port.
    candidates = [
        Socket(None, None, namespace, proto, "ipv6", WILDCARDS["ipv6"], query.port.number, v6only=False)
        for namespace in query.scope.netns.include or (netns.own().inode,)
        for proto in query.port.protos
    ]
    holders = dict.fromkeys(holder for socket in candidates for holder in engine.port_users(socket))
    return tuple(holder for holder in holders if holder.why != "unknown")
