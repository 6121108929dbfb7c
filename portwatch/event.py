"""Events and listeners, and their JSON form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from portwatch.addresses import Exposure
from portwatch.model import Holder, Process, Socket, oldest
from portwatch.timestamps import iso_time, parse_iso_time

EventKind = Literal["open", "close", "bind_failed", "listen_failed", "gap"]
EVENT_KINDS: tuple[EventKind, ...] = get_args(EventKind)
Origin = Literal["event", "snapshot", "reconcile"]


@dataclass(frozen=True, slots=True)
class Event:
    """A change of a port, or a notice that events were lost (a gap). docs/events.md explains the fields."""

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
    """The watched process trees that the event concerns, one bit per tree. Not in the JSON form."""

    @classmethod
    def about(
        cls,
        socket: Socket,
        actor: Process | None,
        *,
        seq: int,
        time: int,
        kind: EventKind,
        origin: Origin,
        opener: Process | None,
        sockets: int,
        engine: str | None,
        errno: str | None = None,
        trees: int = 0,
    ) -> Event:
        """Return an event about a socket. `actor` is the process that caused the event, or None if unknown."""
        # By position, in the order of the fields: by name, the call takes 1 µs more, a tenth of what one event
        # costs in all (bench/bench_storm.py).
        return cls(
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
            actor.pid if actor else None,
            actor.ns_pid if actor else None,
            actor.start_time if actor else None,
            actor.process if actor else None,
            actor.uid if actor else None,
            socket.netns,
            socket.netns_name,
            actor.cgroup if actor else None,
            actor.container if actor else None,
            actor.pod if actor else None,
            socket.inode,
            socket.cookie,
            sockets,
            None,  # held_by
            None,  # lost
            opener,
            engine,
            trees,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
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
        """Return the JSON form, on one line."""
        return _json_line(self.as_dict())

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Event:
        """Return the event of a JSON form. Missing fields become None, and unknown fields are ignored."""
        cookie, held_by, opener = values.get("cookie"), values.get("held_by"), values.get("opener")
        fields: dict[str, Any] = {
            name: values.get(name) for name in cls.__dataclass_fields__ if name != "trees"
        }
        fields.update(
            time=parse_iso_time(values["time"]),
            start_time=parse_iso_time(values.get("start_time")),
            cookie=int(cookie, 16) if cookie else None,
            held_by=None
            if held_by is None
            else tuple(Holder(**_known_fields(Holder, holder)) for holder in held_by),
            opener=Process(
                **_known_fields(Process, {**opener, "start_time": parse_iso_time(opener["start_time"])})
            )
            if opener
            else None,
        )
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Listener:
    """An open socket: its address, the time when it was opened, its opener and its holders.

    A listener has all attributes of an event except `seq` and `kind`. Most of these attributes are properties
    instead of fields, because a list of 10,000 listeners is then built in 10 ms instead of 30 ms.
    """

    origin: Origin
    opened: int | None
    socket: Socket
    sockets: int
    opener: Process | None
    holders: tuple[Process, ...] = field(default=())
    engine: str | None = None

    errno: ClassVar[None] = None
    held_by: ClassVar[None] = None
    lost: ClassVar[None] = None

    @property
    def owner(self) -> Process | None:
        """The opener if it holds the socket or if no holder is known, else the oldest holder."""
        for holder in self.holders:
            if self.opener and holder.is_same_as(self.opener):
                return holder
        return oldest(self.holders) or self.opener

    @property
    def time(self) -> int | None:
        """The same as `opened`: the time when the socket was opened, or None if unknown."""
        return self.opened

    @property
    def proto(self) -> str:
        """`tcp` or `udp`."""
        return self.socket.proto

    @property
    def family(self) -> str:
        """`ipv4` or `ipv6`."""
        return self.socket.family

    @property
    def address(self) -> str:
        """The address that the socket is bound to."""
        return self.socket.address

    @property
    def port(self) -> int:
        """The port number."""
        return self.socket.port

    @property
    def device(self) -> str | None:
        """The network device that the socket is bound to (SO_BINDTODEVICE)."""
        return self.socket.device

    @property
    def mptcp(self) -> bool:
        """True if the socket uses MPTCP (Multipath TCP)."""
        return self.socket.mptcp

    @property
    def v6only(self) -> bool | None:
        """True if the socket does not accept IPv4. None for an IPv4 socket."""
        return self.socket.v6only

    @property
    def backlog(self) -> int | None:
        """The maximum length of a TCP listener's accept queue."""
        return self.socket.backlog

    @property
    def exposure(self) -> Exposure:
        """From which networks the address can be reached."""
        return self.socket.exposure

    @property
    def netns(self) -> int | None:
        """The inode of the socket's network namespace."""
        return self.socket.netns

    @property
    def netns_name(self) -> str | None:
        """The name of the socket's network namespace, or None if it has no name."""
        return self.socket.netns_name

    @property
    def inode(self) -> int | None:
        """The inode of the socket."""
        return self.socket.inode

    @property
    def cookie(self) -> int | None:
        """The cookie of the socket."""
        return self.socket.cookie

    @property
    def pid(self) -> int | None:
        """The owner's pid."""
        owner = self.owner
        return owner.pid if owner else None

    @property
    def ns_pid(self) -> int | None:
        """The owner's pid in its own pid namespace."""
        owner = self.owner
        return owner.ns_pid if owner else None

    @property
    def start_time(self) -> int | None:
        """The owner's start time."""
        owner = self.owner
        return owner.start_time if owner else None

    @property
    def process(self) -> str | None:
        """The owner's process name (comm)."""
        owner = self.owner
        return owner.process if owner else None

    @property
    def uid(self) -> int | None:
        """The owner's uid."""
        owner = self.owner
        return owner.uid if owner else None

    @property
    def cgroup(self) -> str | None:
        """The path of the owner's cgroup."""
        owner = self.owner
        return owner.cgroup if owner else None

    @property
    def container(self) -> str | None:
        """The id of the owner's container."""
        owner = self.owner
        return owner.container if owner else None

    @property
    def pod(self) -> str | None:
        """The uid of the owner's Kubernetes pod."""
        owner = self.owner
        return owner.pod if owner else None

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form: the fields of an event except `seq` and `kind`, plus `opened` and `holders`."""
        event = Event.about(
            self.socket,
            self.owner,
            seq=0,
            time=0,
            kind="open",
            origin=self.origin,
            sockets=self.sockets,
            opener=self.opener,
            engine=self.engine,
        ).as_dict()
        del event["seq"], event["kind"]
        opened = iso_time(self.opened)
        return {
            **event,
            "time": opened,
            "opened": opened,
            "holders": [{**holder.as_dict(), "container": holder.container} for holder in self.holders],
        }

    def to_json(self) -> str:
        """Return the JSON form, on one line."""
        return _json_line(self.as_dict())


def _known_fields(kind: type[Holder | Process], values: dict[str, Any]) -> dict[str, Any]:
    """Return only the values that `kind` has fields for. A later version of portwatch may have written more."""
    return {name: value for name, value in values.items() if name in kind.__dataclass_fields__}


def _json_line(values: dict[str, Any]) -> str:
    from json import dumps  # 7 ms to import, which would delay the first line of `tail`

    return dumps(values, separators=(",", ":"))
