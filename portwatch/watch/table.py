"""What is open, as records and snapshots tell it: every change becomes one event. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Set
from dataclasses import dataclass, replace
from itertools import count

from portwatch.event import Event, EventKind, Listener, Origin
from portwatch.model import Endpoint, OpenSocket, Process, Record, Socket, oldest

Keeps = Callable[[Socket, int, Collection[Process]], bool]
"""Whether a socket is kept, for itself, for its trees or for the processes that it concerns."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """An open socket."""

    socket: Socket
    opened: int | None
    origin: Origin
    opener: Process | None
    holders: tuple[Process, ...]
    trees: int
    """Of whoever opened it, or was found to hold it: it stays theirs when they pass it on."""

    def processes(self) -> tuple[Process, ...]:
        """Who opened it, and who holds it."""
        return (*self.holders, self.opener) if self.opener else self.holders

    def last_known_holder(self) -> Process | None:
        """Who let go, when only the holders of a while ago are known: the one, or nobody we could name."""
        return self.holders[0] if len(self.holders) == 1 else None


class Table:
    """Keyed by socket, never by process: a close runs in whoever lets go last."""

    def __init__(self, engine: str | None = None, first_seq: int = 1) -> None:
        self._engine = engine
        self._sequence = count(first_seq)
        self._entries: dict[Hashable, _Entry] = {}
        self._by_inode: dict[int, Hashable] = {}
        self._sockets_at: Counter[Endpoint] = Counter()
        self._on_port: dict[Hashable, dict[Hashable, None]] = {}
        self._keeps: Keeps = lambda *_: True

    def apply(self, record: Record) -> list[Event]:
        """The events that a record makes: none for a close of what was never open, nor for what is not kept."""
        if record.kind not in _ABOUT_WHAT_IS_KEPT:
            actors = (record.actor,) if record.actor else ()
            if not self._keeps(record.socket, record.trees, actors):
                return []
        return _APPLY[record.kind](self, record)

    def merge(
        self,
        held: Iterable[OpenSocket],
        time: int,
        origin: Origin,
        pending: Set[Hashable] = frozenset(),
    ) -> list[Event]:
        """Makes the table equal to a snapshot, and says what that changed.

        Sockets in `pending` have opens or closes that the table has yet to apply, and are left to
        these: so no socket that changed while the snapshot was taken is lost, or becomes a ghost.
        """
        events: list[Event] = []
        found: set[Hashable] = set()
        for one in held:
            key = self._find(one.socket)
            if not pending or pending.isdisjoint(socket_ids(one.socket)):
                if key is not None and self._moved(key, one.socket):
                    events += self._close(key, time, origin, None)
                    key = None
                if key is None:
                    if not self._keeps(one.socket, one.trees, one.holders):
                        continue
                    opener = oldest(one.holders)
                    events += self._open(one.socket, time, None, origin, opener, one.holders, one.trees)
                    key = self._find(one.socket)
                else:
                    self._refresh(key, one)
            if key is not None:
                found.add(key)
        for key in [key for key in self._entries if key not in found]:
            if not pending or pending.isdisjoint(socket_ids(self._entries[key].socket)):
                events += self._close(key, time, origin, None)
        return events

    def gap(self, lost: int | None, time: int) -> Event:
        """An event that says that records were lost, and that the table was put right."""
        return Event(next(self._sequence), time, "gap", "reconcile", lost=lost, engine=self._engine)

    def replay(
        self, time: int, origin: Origin, wants: Callable[[Socket, int], bool] = lambda *_: True
    ) -> list[Event]:
        """What is open, as events: for somebody who comes later, and `wants` sockets by their trees."""
        return [
            self._event(time, "open", origin, entry, entry.opener)
            for entry in self._entries.values()
            if wants(entry.socket, entry.trees)
        ]

    def keep_only(self, keeps: Keeps) -> None:
        """Forgets, and takes no more, what is not to be kept."""
        self._keeps = keeps
        for key, entry in list(self._entries.items()):
            if not keeps(entry.socket, entry.trees, entry.processes()):
                self._remove(key)

    def forget(self, trees: int) -> None:
        """Forgets what belonged to trees, and keeps it."""
        for key, entry in self._entries.items():
            if entry.trees & trees:
                self._entries[key] = replace(entry, trees=entry.trees & ~trees)

    def listeners(self, wants: Callable[[Socket, int], bool] | None = None) -> Iterator[Listener]:
        """What is open now; for somebody who `wants` sockets by their trees, if that is said.

        Each is made when it is come to, in whichever thread: to make 10,000 takes 10 ms, for which nobody
        who has records to apply should wait.
        """
        entries, sockets_at = list(self._entries.values()), dict(self._sockets_at)
        if wants:
            entries = [one for one in entries if wants(one.socket, one.trees)]
        return (
            Listener(
                entry.origin,
                entry.opened,
                entry.socket,
                sockets_at[entry.socket.endpoint],
                entry.opener,
                entry.holders,
                self._engine,
            )
            for entry in entries
        )

    def blockers_of(self, refused: Socket) -> list[OpenSocket]:
        """The sockets on whose account an address was refused to another, with the holders of a while ago."""
        entries = (self._entries[key] for key in self._on_port.get(_port_of(refused), ()))
        return [
            OpenSocket(entry.socket, entry.holders, entry.trees)
            for entry in entries
            if entry.socket.blocks(refused) and entry.socket.inode != refused.inode
        ]

    def _apply_open(self, record: Record) -> list[Event]:
        events: list[Event] = []
        key = self._find(record.socket)
        if key is not None:
            if not self._moved(key, record.socket):
                return []
            events = self._close(key, record.time, "event", None)
        holders = (record.actor,) if record.actor else ()
        return events + self._open(
            record.socket, record.time, record.time, "event", record.actor, holders, record.trees
        )

    def _apply_close(self, record: Record) -> list[Event]:
        key = self._find(record.socket)
        if key is None:
            return []
        actor = record.actor or self._entries[key].last_known_holder()
        return self._close(key, record.time, "event", actor)

    def _apply_backlog(self, record: Record) -> list[Event]:
        key = self._find(record.socket)
        if key is not None:
            entry = self._entries[key]
            socket = replace(entry.socket, backlog=record.socket.backlog)
            self._entries[key] = replace(entry, socket=socket)
        return []

    def _apply_failure(self, record: Record) -> list[Event]:
        return [
            Event.about(
                record.socket,
                record.actor,
                seq=next(self._sequence),
                time=record.time,
                kind="bind_failed" if record.kind == "bind_failed" else "listen_failed",
                origin="event",
                opener=record.actor,
                sockets=self._sockets_at.get(record.socket.endpoint, 0),
                engine=self._engine,
                errno=record.errno,
                trees=record.trees,
            )
        ]

    def _open(
        self,
        socket: Socket,
        time: int,
        opened: int | None,
        origin: Origin,
        opener: Process | None,
        holders: tuple[Process, ...],
        trees: int,
    ) -> list[Event]:
        key = socket_ids(socket)[0]
        entry = _Entry(socket, opened, origin, opener, holders, trees)
        self._entries[key] = entry
        if socket.inode is not None:
            self._by_inode[socket.inode] = key
        self._sockets_at[socket.endpoint] += 1
        self._on_port.setdefault(_port_of(socket), {})[key] = None
        return [self._event(time, "open", origin, entry, opener)]

    def _close(self, key: Hashable, time: int, origin: Origin, actor: Process | None) -> list[Event]:
        entry = self._remove(key)
        return [self._event(time, "close", origin, entry, actor)]

    def _remove(self, key: Hashable) -> _Entry:
        entry = self._entries.pop(key)
        if entry.socket.inode is not None:
            self._by_inode.pop(entry.socket.inode, None)
        self._sockets_at[entry.socket.endpoint] -= 1
        if not self._sockets_at[entry.socket.endpoint]:
            del self._sockets_at[entry.socket.endpoint]
        port = _port_of(entry.socket)
        del self._on_port[port][key]
        if not self._on_port[port]:
            del self._on_port[port]
        return entry

    def _refresh(self, key: Hashable, one: OpenSocket) -> None:
        entry = self._entries[key]
        socket = entry.socket
        if one.socket.backlog is not None and one.socket.backlog != socket.backlog:
            socket = replace(socket, backlog=one.socket.backlog)
        self._entries[key] = replace(entry, socket=socket, holders=one.holders, trees=entry.trees | one.trees)

    def _find(self, socket: Socket) -> Hashable | None:
        for name in socket_ids(socket):
            if name in self._entries:
                return name
        # MPTCP shows one cookie to whoever looks at the file and another, the subflow's,
        # to the hooks; /proc/net shows none. The inode is the same for all of them.
        key = self._by_inode.get(socket.inode) if socket.inode is not None else None
        if key is not None:
            known = self._entries[key].socket
            if None in (known.cookie, socket.cookie) or known.mptcp or known.cookie == socket.cookie:
                return key
        return None

    def _moved(self, key: Hashable, socket: Socket) -> bool:
        return self._entries[key].socket.port != socket.port

    def _event(self, time: int, kind: EventKind, origin: Origin, entry: _Entry, actor: Process | None) -> Event:
        return Event.about(
            entry.socket,
            actor,
            seq=next(self._sequence),
            time=time,
            kind=kind,
            origin=origin,
            opener=entry.opener,
            sockets=self._sockets_at.get(entry.socket.endpoint, 0),
            engine=self._engine,
            trees=entry.trees,
        )


_ABOUT_WHAT_IS_KEPT = ("close", "backlog")

_APPLY = {
    "open": Table._apply_open,
    "close": Table._apply_close,
    "backlog": Table._apply_backlog,
    "bind_failed": Table._apply_failure,
    "listen_failed": Table._apply_failure,
}


def _port_of(socket: Socket) -> Hashable:
    return socket.netns, socket.proto, socket.port


def socket_ids(socket: Socket) -> tuple[Hashable, ...]:
    """What a socket can be recognised by, the best first."""
    found: list[Hashable] = []
    if socket.cookie is not None:
        found.append(socket.cookie)
    if socket.sock is not None:
        found.append(("sock", socket.sock))
    if socket.inode is not None:
        found.append(("inode", socket.inode))
    return tuple(found) or (socket.endpoint,)
