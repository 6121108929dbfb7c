"""The data that engines report: sockets, processes, records and snapshots."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from portwatch.addresses import MAPPED_PREFIX, WILDCARDS, Exposure, exposure
from portwatch.timestamps import iso_time

RecordKind = Literal["open", "close", "backlog", "bind_failed", "listen_failed"]
Why = Literal["listening", "bound", "time_wait", "connected", "unknown"]

PROTOCOLS = ("tcp", "udp")


class Endpoint(NamedTuple):
    """The address and port of a socket. Several sockets can share an endpoint (SO_REUSEPORT)."""

    netns: int | None
    proto: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Process:
    """A process. Its pid and start time together identify it, because pids are reused."""

    pid: int
    start_time: int | None
    """Nanoseconds since the epoch, accurate to a clock tick. Constant for the life of the process."""
    process: str
    """The comm of the thread group leader."""
    uid: int | None
    ns_pid: int | None = None
    """The pid in the process's own pid namespace."""
    cgroup: str | None = None
    container: str | None = None
    pod: str | None = None
    """The uid of the Kubernetes pod."""

    def is_same_as(self, other: Process) -> bool:
        """Return True if both are the same process, even if its name has changed (exec)."""
        return (self.pid, self.start_time) == (other.pid, other.start_time)

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form, as it appears in `opener` and `holders`."""
        return {
            "pid": self.pid,
            "start_time": iso_time(self.start_time),
            "process": self.process,
            "uid": self.uid,
        }


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a port that was refused to another socket. Unknown values are None."""

    pid: int | None
    process: str | None
    container: str | None
    why: Why

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"pid": self.pid, "process": self.process, "container": self.container, "why": self.why}


@dataclass(frozen=True, slots=True)
class Socket:
    """A TCP or UDP socket, with the address and port that it is bound to."""

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
    """The address of the kernel's struct sock, for hooks that cannot get the cookie. Never shown to users."""
    netns_name: str | None = None
    """The name that the network namespace had when the socket was first seen."""

    @property
    def endpoint(self) -> Endpoint:
        """The address and port that the socket is bound to."""
        return Endpoint(self.netns, self.proto, self.address, self.port)

    @property
    def exposure(self) -> Exposure:
        """From which networks the address can be reached."""
        return exposure(self.address)

    def blocks(self, other: Socket) -> bool:
        """Return True if this socket may be the reason why `other` cannot be bound."""
        return (
            (self.netns, self.proto, self.port) == (other.netns, other.proto, other.port)
            and (self.device is None or other.device is None or self.device == other.device)
            and self._overlaps(other)
        )

    def _overlaps(self, other: Socket) -> bool:
        if self.family == other.family:
            return self.address == other.address or WILDCARDS[self.family] in (self.address, other.address)
        v6, v4 = (self, other) if self.family == "ipv6" else (other, self)
        if v6.address.startswith(MAPPED_PREFIX):
            return v4.address in (v6.address.removeprefix(MAPPED_PREFIX), WILDCARDS["ipv4"])
        return v6.address == WILDCARDS["ipv6"] and not v6.v6only


@dataclass(frozen=True, slots=True)
class Record:
    """A change that an engine reports about a socket."""

    kind: RecordKind
    time: int
    socket: Socket
    actor: Process | None
    errno: str | None = None
    trees: int = 0
    """The watched trees that the actor belongs to, one bit per tree."""


@dataclass(frozen=True, slots=True)
class OpenSocket:
    """A socket that a snapshot found open, and every process that holds it."""

    socket: Socket
    holders: tuple[Process, ...]
    trees: int = 0
    """The watched trees that the holders belong to, one bit per tree."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The sockets that an engine has found open in one search."""

    sockets: tuple[OpenSocket, ...]
    seen_inodes: Set[int | None]
    """The inodes of all sockets that the engine looked at, open or not."""


def oldest(processes: Iterable[Process]) -> Process | None:
    """Return the process that started first, or None if there are no processes."""
    return min(processes, key=lambda process: (process.start_time or 0, process.pid), default=None)
