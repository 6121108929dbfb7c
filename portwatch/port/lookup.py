"""One port, and all that the kernel tells of it: who listens, or else who is in the way."""

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
    """A number, and the protocols of which it may be."""

    number: int
    protos: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.protos[0]}/{self.number}" if len(self.protos) == 1 else f"port {self.number}"


@dataclass(frozen=True, slots=True)
class PortQuery:
    """Which sockets are meant: those of a port that a scope admits, of some process trees or of anybody."""

    port: Port
    scope: Scope
    pids: Filter[int] = field(default_factory=Filter)
    """The roots of the trees."""

    @property
    def socket_scope(self) -> Scope:
        """Of a socket this admits all that happens, or nothing: whatever processes it went through."""
        return Scope(
            port=Filter(((self.port.number, self.port.number),)),
            proto=Filter(self.port.protos),
            exposure=self.scope.exposure,
            netns=self.scope.netns,
        )

    def admits(self, event: Event) -> bool:
        """Whether an event is about such a socket."""
        return self.socket_scope.admits(event) and self.scope.admits(event)

    def select(self, listeners: Iterable[Listener]) -> tuple[Listener, ...]:
        """Those that are such sockets, of whatever tree."""
        return tuple(
            one
            for one in listeners
            if self.socket_scope.admits_listener(one) and self.scope.admits_listener(one)
        )


@dataclass(frozen=True, slots=True)
class LookupResult:
    """What is known of a port now."""

    choice: Choice
    listeners: tuple[Listener, ...]
    """Those that are meant."""
    matching_holders: tuple[Process, ...]
    """Who of their holders is meant, too: others may share a socket with these."""
    all_listeners: tuple[Listener, ...]
    """Of every port: what is behind one that forwards is among them."""
    blockers: tuple[Holder, ...] = ()
    """Where nobody listens: who keeps others from it all the same."""


def look_up(query: PortQuery, engine: str, options: Options) -> LookupResult:
    """Asks the kernel. Raises EngineUnavailable, and PortwatchError where a process of `pids` is not there."""
    with listing(engine, options) as (choice, all_listeners):
        is_of_trees = tree_predicate(query.pids, choice.engine.name)
        listeners = tuple(one for one in query.select(all_listeners) if is_of_trees(*one.holders))
        matching_holders = tuple(
            one for one in holders_of(listeners) if is_of_trees(one) and query.scope.admits_process(one)
        )
        blockers = () if listeners else _in_the_way(query, choice.engine)
        return LookupResult(choice, listeners, matching_holders, tuple(all_listeners), blockers)


def holders_of(listeners: Iterable[Listener]) -> tuple[Process, ...]:
    """Every process that holds one of these, once, the oldest first."""
    found = {(holder.pid, holder.start_time): holder for one in listeners for holder in one.holders}
    return tuple(sorted(found.values(), key=lambda holder: (holder.start_time or 0, holder.pid)))


def _in_the_way(query: PortQuery, engine: Engine) -> tuple[Holder, ...]:
    # In the way of a socket for both families and every address is whoever has the port at all.
    anyone = [
        Socket(None, None, namespace, proto, "ipv6", WILDCARDS["ipv6"], query.port.number, v6only=False)
        for namespace in query.scope.netns.include or (netns.own().inode,)
        for proto in query.port.protos
    ]
    found = dict.fromkeys(holder for socket in anyone for holder in engine.port_users(socket))
    return tuple(holder for holder in found if holder.why != "unknown")
