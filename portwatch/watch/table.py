"""The table of open sockets. It turns records and snapshots into events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Set
from dataclasses import dataclass, replace
from itertools import count

from portwatch.event import Event, EventKind, Listener, Origin
from portwatch.model import Endpoint, OpenSocket, Process, Record, Socket, oldest

SocketFilter = Callable[[Socket, int, Collection[Process]], bool]
"""Tells whether a socket passes, given its trees and the processes involved: see KernelFilter.passes."""

Predicate = Callable[[Socket, int], bool]
"""Tells whether an open socket is selected, given its trees."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """An open socket."""

    socket: Socket
    opened: int | None
    origin: Origin
    opener: Process | None
    holders: tuple[Process, ...]
    trees: int
    """The trees of the socket's opener and of every holder that a snapshot found. They stay set when a holder
    passes the socket to another process and closes its own descriptor."""

    def processes(self) -> tuple[Process, ...]:
        """Return the holders and the opener."""
        return (*self.holders, self.opener) if self.opener else self.holders

    def only_holder(self) -> Process | None:
        """Return the holder if there is exactly one: no other process can have closed the socket."""
        return self.holders[0] if len(self.holders) == 1 else None


class Table:
    """Every open socket. Pure: it does no I/O and reads no clock.

    It is keyed by socket, never by process, because the process that drops the last reference can be any
    process.

    Invariants, which the tests check over random histories:

    - There is no close without an open.
    - There are never two opens of one socket in a row.
    - After a merge, the table equals the snapshot, apart from `pending` sockets and those that `keep_only`
      filters out.
    - After a loss of records, a merge makes the table equal to the kernel's state again.

    Not thread-safe.
    """

    def __init__(self, engine: str | None = None, first_seq: int = 1) -> None:
        self._engine = engine
        self._sequence = count(first_seq)
        self._entries: dict[Hashable, _Entry] = {}
        """Each open socket. Its key is the first of the `socket_ids` that it had when it was opened."""
        self._by_inode: dict[int, Hashable] = {}
        self._sockets_at: Counter[Endpoint] = Counter()
        self._on_port: dict[Hashable, dict[Hashable, None]] = {}
        """The keys of the sockets on each port. The inner dict serves as an ordered set."""
        self._passes: SocketFilter = lambda *_: True

    def apply(self, record: Record) -> list[Event]:
        """Return the events that a record causes.

        The list is empty for the close of an unknown socket, and for a socket that is filtered out.
        """
        if record.kind not in _UNFILTERED_KINDS:
            actors = (record.actor,) if record.actor else ()
            if not self._passes(record.socket, record.trees, actors):
                return []
        return _APPLY[record.kind](self, record)

    def merge(
        self,
        snapshot: Iterable[OpenSocket],
        time: int,
        origin: Origin,
        pending: Set[Hashable] = frozenset(),
    ) -> list[Event]:
        """Make the table equal to a snapshot, and return the changes as events.

        `pending` has the ids of the sockets whose open or close has been read but not applied yet. The merge
        does not change these sockets, because the snapshot may be older or newer than the record. When the
        record is applied, the table is right again. So if a socket opens or closes during a snapshot, the open
        is not missed, and a closed socket does not stay in the table.
        """

        def is_pending(socket: Socket) -> bool:
            return bool(pending) and not pending.isdisjoint(socket_ids(socket))

        events: list[Event] = []
        seen: set[Hashable] = set()
        for found in snapshot:
            key = self._find(found.socket)
            if not is_pending(found.socket):
                if key is not None and self._has_moved(key, found.socket):
                    events += self._close(key, time, origin, None)
                    key = None
                if key is not None:
                    self._refresh(key, found)
                elif self._passes(found.socket, found.trees, found.holders):
                    opener = oldest(found.holders)
                    events += self._open(found.socket, time, None, origin, opener, found.holders, found.trees)
                    key = self._find(found.socket)
            if key is not None:
                seen.add(key)
        for key in [key for key in self._entries if key not in seen]:
            if not is_pending(self._entries[key].socket):
                events += self._close(key, time, origin, None)
        return events

    def gap(self, lost: int | None, time: int) -> Event:
        """Return a gap, which says that `lost` events are missing here. None means an unknown number."""
        return Event(next(self._sequence), time, "gap", "reconcile", lost=lost, engine=self._engine)

    def replay(self, time: int, origin: Origin, predicate: Predicate = lambda *_: True) -> list[Event]:
        """Return an open event for every selected socket, for a subscriber that did not get the original."""
        return [
            self._event(time, "open", origin, entry, entry.opener)
            for entry in self._entries.values()
            if predicate(entry.socket, entry.trees)
        ]

    def reissue(self, changes: list[Event]) -> list[Event]:
        """Return the opens and closes that a subscriber missed, with new seqs.

        `changes` lacks the missed opens and closes that have cancelled each other out. Therefore the field
        `sockets` of each event is counted backwards from the number of sockets that are open now.
        """
        open_now: dict[Endpoint, int] = {}
        counts: list[int] = []
        for event in reversed(changes):
            endpoint = Endpoint(event.netns, event.proto or "", event.address or "", event.port or 0)
            count = open_now.get(endpoint, self._sockets_at.get(endpoint, 0))
            counts.append(count)
            open_now[endpoint] = count + (1 if event.kind == "close" else -1)
        return [
            replace(event, seq=next(self._sequence), origin="reconcile", sockets=count)
            for event, count in zip(changes, reversed(counts), strict=True)
        ]

    def keep_only(self, passes: SocketFilter) -> None:
        """Drop the sockets that do not pass, without events, and ignore such sockets from now on."""
        self._passes = passes
        for key, entry in list(self._entries.items()):
            if not passes(entry.socket, entry.trees, entry.processes()):
                self._remove(key)

    def clear_trees(self, trees: int) -> None:
        """Clear these bits in every entry. The sockets stay."""
        for key, entry in self._entries.items():
            if entry.trees & trees:
                self._entries[key] = replace(entry, trees=entry.trees & ~trees)

    def listeners(self, predicate: Predicate | None = None) -> Iterator[Listener]:
        """Return the open sockets that are selected, as they are at the time of the call.

        The listeners are built while they are iterated, in the caller's thread: building 10,000 takes 10 ms,
        during which the thread that owns the table could not apply records.
        """
        entries, sockets_at = list(self._entries.values()), dict(self._sockets_at)
        if predicate:
            entries = [entry for entry in entries if predicate(entry.socket, entry.trees)]
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
        """Return the sockets that may have caused a bind to be refused. Their holders may be out of date."""
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
            if not self._has_moved(key, record.socket):
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
        actor = record.actor or self._entries[key].only_holder()
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
        return [self._event(time, "close", origin, self._remove(key), actor)]

    def _remove(self, key: Hashable) -> _Entry:
        entry = self._entries.pop(key)
        # If the record of this socket's close was lost, a later socket may have the same inode by now.
        if entry.socket.inode is not None and self._by_inode.get(entry.socket.inode) == key:
            del self._by_inode[entry.socket.inode]
        endpoint = entry.socket.endpoint
        self._sockets_at[endpoint] -= 1
        if not self._sockets_at[endpoint]:
            del self._sockets_at[endpoint]
        port = _port_of(entry.socket)
        del self._on_port[port][key]
        if not self._on_port[port]:
            del self._on_port[port]
        return entry

    def _refresh(self, key: Hashable, found: OpenSocket) -> None:
        entry = self._entries[key]
        socket = entry.socket
        if found.socket.backlog is not None and found.socket.backlog != socket.backlog:
            socket = replace(socket, backlog=found.socket.backlog)
        self._entries[key] = replace(
            entry, socket=socket, holders=found.holders, trees=entry.trees | found.trees
        )

    def _find(self, socket: Socket) -> Hashable | None:
        for socket_id in socket_ids(socket):
            if socket_id in self._entries:
                return socket_id
        # An MPTCP socket has several cookies. The hooks report the cookie of its subflow, its file has another
        # cookie, and /proc/net shows none. The inode is always the same.
        key = self._by_inode.get(socket.inode) if socket.inode is not None else None
        if key is not None:
            known = self._entries[key].socket
            if None in (known.cookie, socket.cookie) or known.mptcp or known.cookie == socket.cookie:
                return key
        return None

    def _has_moved(self, key: Hashable, socket: Socket) -> bool:
        """Return True if the port has changed. After shutdown() and a new listen(), the cookie is the same."""
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


_UNFILTERED_KINDS = ("close", "backlog")
"""Records of these kinds only change sockets in the table, which have passed the filter already."""

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
    """Return the ids by which a socket can be recognised, the most reliable first."""
    ids: list[Hashable] = []
    if socket.cookie is not None:
        ids.append(socket.cookie)
    if socket.sock is not None:
        ids.append(("sock", socket.sock))
    if socket.inode is not None:
        ids.append(("inode", socket.inode))
    return tuple(ids) or (socket.endpoint,)
