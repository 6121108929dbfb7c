"""What is passed around: sockets, processes, records, events and listeners."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_pton
from time import gmtime, strftime
from typing import Any, Generic, Literal, NamedTuple, TypeVar

T = TypeVar("T")

EventKind = Literal["open", "close", "bind_failed", "listen_failed", "gap"]
RecordKind = Literal["open", "close", "backlog", "bind_failed", "listen_failed"]
Origin = Literal["event", "snapshot", "reconcile"]
Exposure = Literal["loopback", "private", "public", "all"]
Why = Literal["listening", "bound", "time_wait", "connected", "unknown"]

WILDCARDS = {"ipv4": "0.0.0.0", "ipv6": "::"}


class Key(NamedTuple):
    """Where a socket listens; sockets that share it (SO_REUSEPORT) share a port."""

    netns: int | None
    proto: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told from a later one of the same pid by its start."""

    pid: int
    start_time: int | None
    """Nanoseconds since the epoch, to the clock tick: the same for a process all through a run."""
    process: str
    uid: int | None
    ns_pid: int | None = None
    """The pid that the process knows itself by."""
    cgroup: str | None = None
    container: str | None = None
    pod: str | None = None
    """The uid of the Kubernetes pod."""

    def is_same_as(self, other: Process) -> bool:
        """Whether both are one process, whatever it is called by now."""
        return (self.pid, self.start_time) == (other.pid, other.start_time)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form of an opener."""
        return {
            "pid": self.pid,
            "start_time": iso_time(self.start_time),
            "process": self.process,
            "uid": self.uid,
        }


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a port that somebody else was refused, and in which way."""

    pid: int | None
    process: str | None
    container: str | None
    why: Why

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"pid": self.pid, "process": self.process, "container": self.container, "why": self.why}


@dataclass(frozen=True, slots=True)
class Socket:
    """A socket, and where it listens (or is bound, for UDP)."""

    cookie: int | None
    inode: int | None
    netns: int | None
    proto: str
    family: str
    address: str
    port: int
    device: str | None = None
    mptcp: bool = False
    v6only: bool | None = None
    backlog: int | None = None
    sock: int | None = None
    """The kernel's address of it, from hooks that cannot ask for the cookie: never shown."""
    netns_name: str | None = None
    """What the namespace was called when the socket was first seen."""

    @property
    def key(self) -> Key:
        """Where it listens."""
        return Key(self.netns, self.proto, self.address, self.port)

    @property
    def exposure(self) -> Exposure:
        """How far it can be reached from."""
        return exposure(self.address)

    def blocks(self, other: Socket) -> bool:
        """Whether this socket can be why `other` was refused its address."""
        return (
            (self.netns, self.proto, self.port) == (other.netns, other.proto, other.port)
            and (self.device is None or other.device is None or self.device == other.device)
            and self._covers(other)
        )

    def _covers(self, other: Socket) -> bool:
        if self.family != other.family:
            six = self if self.family == "ipv6" else other
            four = other if six is self else self
            if six.address.startswith("::ffff:"):
                return four.address in (six.address[len("::ffff:") :], WILDCARDS["ipv4"])
            return six.address == WILDCARDS["ipv6"] and not six.v6only
        return self.address == other.address or WILDCARDS[self.family] in (self.address, other.address)


@dataclass(frozen=True, slots=True)
class Record:
    """What an engine saw happen to one socket."""

    kind: RecordKind
    time: int
    socket: Socket
    actor: Process | None
    errno: str | None = None
    trees: int = 0
    """The watched trees that the actor belongs to, a bit for each."""


@dataclass(frozen=True, slots=True)
class Held:
    """A socket that a snapshot found open, and every process that holds it."""

    socket: Socket
    holders: tuple[Process, ...]
    trees: int = 0
    """The watched trees that these belong to, a bit for each."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What an engine finds open at one time."""

    held: tuple[Held, ...]
    met: Set[int | None]
    """The inodes of these, and of the sockets that it looked at and that are not open."""


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one port; the fields are explained in docs/events.md."""

    seq: int
    time: int
    kind: EventKind
    origin: Origin
    proto: str | None = None
    family: str | None = None
    address: str | None = None
    port: int | None = None
    device: str | None = None
    mptcp: bool | None = None
    v6only: bool | None = None
    backlog: int | None = None
    exposure: Exposure | None = None
    errno: str | None = None
    pid: int | None = None
    ns_pid: int | None = None
    start_time: int | None = None
    process: str | None = None
    uid: int | None = None
    netns: int | None = None
    netns_name: str | None = None
    cgroup: str | None = None
    container: str | None = None
    pod: str | None = None
    inode: int | None = None
    cookie: int | None = None
    sockets: int | None = None
    held_by: tuple[Holder, ...] | None = None
    lost: int | None = None
    opener: Process | None = None
    engine: str | None = None
    trees: int = field(default=0, repr=False)
    """The watched trees that it concerns, a bit for each: for those who hand it on, shown to nobody."""

    def as_dict(self) -> dict[str, Any]:
        """The one JSON form."""
        return {
            "seq": self.seq,
            "time": iso_time(self.time),
            "kind": self.kind,
            "origin": self.origin,
            "proto": self.proto,
            "family": self.family,
            "address": self.address,
            "port": self.port,
            "device": self.device,
            "mptcp": self.mptcp,
            "v6only": self.v6only,
            "backlog": self.backlog,
            "exposure": self.exposure,
            "errno": self.errno,
            "pid": self.pid,
            "ns_pid": self.ns_pid,
            "start_time": iso_time(self.start_time),
            "process": self.process,
            "uid": self.uid,
            "netns": self.netns,
            "netns_name": self.netns_name,
            "cgroup": self.cgroup,
            "container": self.container,
            "pod": self.pod,
            "inode": self.inode,
            "cookie": hex(self.cookie) if self.cookie else None,
            "sockets": self.sockets,
            "held_by": None if self.held_by is None else [holder.as_dict() for holder in self.held_by],
            "lost": self.lost,
            "opener": self.opener.as_dict() if self.opener else None,
            "engine": self.engine,
        }

    def to_json(self) -> str:
        """The one JSON form, on one line."""
        return _json_line(self.as_dict())

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Event:
        """The event that has this JSON form. What an older portwatch did not tell is None."""
        cookie, held_by, opener = values.get("cookie"), values.get("held_by"), values.get("opener")
        known: dict[str, Any] = {name: values.get(name) for name in cls.__dataclass_fields__ if name != "trees"}
        known.update(
            time=_nanoseconds(values["time"]),
            start_time=_nanoseconds(values.get("start_time")),
            cookie=int(cookie, 16) if cookie else None,
            held_by=None if held_by is None else tuple(Holder(**holder) for holder in held_by),
            opener=Process(**{**opener, "start_time": _nanoseconds(opener["start_time"])}) if opener else None,
        )
        return cls(**known)


class _Field(Generic[T]):
    """A field of a listener that is one of what it consists of."""

    def __init__(self, read: Callable[[Listener], T]) -> None:
        self._read = read

    def __get__(self, listener: Listener, _: type[Listener]) -> T:
        return self._read(listener)


@dataclass(frozen=True, slots=True)
class Listener:
    """One open socket: where it listens, since when, who opened it and who holds it.

    It has the names of an event, but for `seq` and `kind`.
    """

    origin: Origin
    opened: int | None
    socket: Socket
    sockets: int
    opener: Process | None
    holders: tuple[Process, ...] = field(default=())
    engine: str | None = None

    time = _Field(lambda one: one.opened)
    proto = _Field(lambda one: one.socket.proto)
    family = _Field(lambda one: one.socket.family)
    address = _Field(lambda one: one.socket.address)
    port = _Field(lambda one: one.socket.port)
    device = _Field(lambda one: one.socket.device)
    mptcp = _Field(lambda one: one.socket.mptcp)
    v6only = _Field(lambda one: one.socket.v6only)
    backlog = _Field(lambda one: one.socket.backlog)
    exposure = _Field(lambda one: one.socket.exposure)
    errno = None
    pid = _Field(lambda one: one.owner.pid if one.owner else None)
    ns_pid = _Field(lambda one: one.owner.ns_pid if one.owner else None)
    start_time = _Field(lambda one: one.owner.start_time if one.owner else None)
    process = _Field(lambda one: one.owner.process if one.owner else None)
    uid = _Field(lambda one: one.owner.uid if one.owner else None)
    netns = _Field(lambda one: one.socket.netns)
    netns_name = _Field(lambda one: one.socket.netns_name)
    cgroup = _Field(lambda one: one.owner.cgroup if one.owner else None)
    container = _Field(lambda one: one.owner.container if one.owner else None)
    pod = _Field(lambda one: one.owner.pod if one.owner else None)
    inode = _Field(lambda one: one.socket.inode)
    cookie = _Field(lambda one: one.socket.cookie)
    held_by = None
    lost = None

    @property
    def owner(self) -> Process | None:
        """The opener while it still holds the socket, else its oldest holder."""
        for holder in self.holders:
            if self.opener and holder.is_same_as(self.opener):
                return holder
        return oldest(self.holders) or self.opener

    def as_dict(self) -> dict[str, Any]:
        """The JSON form: an event's, without seq and kind, with `opened` and `holders`."""
        owner, opened = self.owner, iso_time(self.opened)
        event = event_of(
            0, 0, "open", self.origin, self.socket, owner, self.opener, self.sockets, self.engine
        ).as_dict()
        del event["seq"], event["kind"]
        return {
            **event,
            "time": opened,
            "opened": opened,
            "holders": [{**holder.as_dict(), "container": holder.container} for holder in self.holders],
        }

    def to_json(self) -> str:
        """The JSON form, on one line."""
        return _json_line(self.as_dict())


def event_of(
    seq: int,
    time: int,
    kind: EventKind,
    origin: Origin,
    socket: Socket,
    actor: Process | None,
    opener: Process | None,
    sockets: int | None,
    engine: str | None,
    errno: str | None = None,
    held_by: tuple[Holder, ...] | None = None,
    trees: int = 0,
) -> Event:
    """An event about `socket`, which `actor` caused."""
    pid = ns_pid = start_time = process = uid = cgroup = container = pod = None
    if actor:
        pid, start_time, process, uid = actor.pid, actor.start_time, actor.process, actor.uid
        ns_pid, cgroup, container, pod = actor.ns_pid, actor.cgroup, actor.container, actor.pod
    return Event(
        seq,
        time,
        kind,
        origin,
        socket.proto,
        socket.family,
        socket.address,
        socket.port,
        socket.device,
        socket.mptcp,
        socket.v6only,
        socket.backlog,
        socket.exposure,
        errno,
        pid,
        ns_pid,
        start_time,
        process,
        uid,
        socket.netns,
        socket.netns_name,
        cgroup,
        container,
        pod,
        socket.inode,
        socket.cookie,
        sockets,
        held_by,
        None,
        opener,
        engine,
        trees,
    )


def _json_line(values: dict[str, Any]) -> str:
    from json import dumps  # 7 ms, which nobody pays before the first line

    return dumps(values, separators=(",", ":"))


def oldest(processes: Iterable[Process]) -> Process | None:
    """The process that started first."""
    return min(processes, key=lambda process: (process.start_time or 0, process.pid), default=None)


def iso_time(nanoseconds: int | None) -> str | None:
    """UTC as ISO 8601 to the nanosecond; zeros at the end, which nobody measured, are left out."""
    if nanoseconds is None:
        return None
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    digits = f"{fraction:09}".rstrip("0")
    return strftime("%Y-%m-%dT%H:%M:%S", gmtime(seconds)) + (f".{digits}Z" if digits else "Z")


def _nanoseconds(text: str | None) -> int | None:
    """What `iso_time` was given."""
    if text is None:
        return None
    from calendar import timegm  # for those who read what was written

    whole, _, digits = text.rstrip("Z").partition(".")
    fields = (int(part) for part in whole.replace("T", "-").replace(":", "-").split("-"))
    return timegm(tuple(fields)) * 1_000_000_000 + int(digits.ljust(9, "0"))


_PRIVATE = tuple(
    (inet_pton(AF_INET6 if ":" in prefix else AF_INET, prefix), bits)
    for prefix, bits in (
        ("10.0.0.0", 8),
        ("172.16.0.0", 12),
        ("192.168.0.0", 16),
        ("169.254.0.0", 16),
        ("100.64.0.0", 10),
        ("fc00::", 7),
        ("fe80::", 10),
    )
)


@lru_cache(maxsize=1024)
def exposure(address: str) -> Exposure:
    """How far an address can be reached from: see docs/events.md."""
    if address in ("0.0.0.0", "::", "::ffff:0.0.0.0"):
        return "all"
    packed = inet_pton(AF_INET6 if ":" in address else AF_INET, address)
    if packed[:12] == bytes(10) + b"\xff\xff":
        packed = packed[12:]
    if packed == bytes(15) + b"\x01" or (len(packed) == 4 and packed[0] == 127):
        return "loopback"
    for prefix, bits in _PRIVATE:
        if len(prefix) == len(packed):
            shift = 8 * len(packed) - bits
            if int.from_bytes(packed, "big") >> shift == int.from_bytes(prefix, "big") >> shift:
                return "private"
    return "public"
