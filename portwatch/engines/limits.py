"""What engines can and cannot see, as data: doctor, the docs and the tests read this."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limit:
    """Something that an engine does not see as it happens."""

    name: str
    text: str
    scenarios: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """An engine as it runs here: its hooks, and what these leave out."""

    engine: str
    hooks: str
    limits: tuple[Limit, ...] = ()
    why: str | None = None
    """Why these hooks and not better ones."""

    def has_limit(self, name: str) -> bool:
        """Return True if this engine has the limit of that name."""
        return any(limit.name == name for limit in self.limits)


UDP_CONNECT = Limit(
    "udp_connect",
    "a bound UDP socket that connects (and so no longer hears from everybody), or disconnects, "
    "is noticed at the next reconciliation",
    ("S17",),
)
UDP_AUTOBIND = Limit(
    "udp_autobind",
    "with --ephemeral, a UDP port taken without bind() is noticed at the next reconciliation",
    ("S16",),
)
IO_URING_FAILURES = Limit("io_uring_failures", "a bind or listen that fails through io_uring is not reported")
COMPAT_FAILURES = Limit("compat_failures", "a bind or listen that fails in a 32-bit program is not reported")
FAILURES = Limit("failures", "binds and listens that fail are not reported", ("S05", "S06", "S07"))
BIND_FAILURES = Limit("bind_failures", "binds that fail are not reported", ("S06", "S07"))
LISTEN_FAILURES = Limit("listen_failures", "listens that fail are not reported", ("S05",))
BOUND_HOLDERS = Limit(
    "bound_holders",
    "who has bound a port, and does not listen on it, is not named where somebody else is refused it",
    ("S06",),
)
MPTCP_FAILURES = Limit(
    "mptcp_failures",
    "a bind or listen of an MPTCP socket that fails is not reported, a changed backlog of its not at once",
)
REFUSED_UDP = Limit(
    "refused_udp",
    "a UDP port that the kernel gave, and a cgroup's program then refused, is shown open until the next "
    "reconciliation",
)
UDP = Limit("udp", "UDP ports are noticed at the next reconciliation", ("S15", "S16", "S17"))
SHORT_LIVED = Limit(
    "short_lived",
    "a port that opens and closes between two polls is not seen",
    ("S08", "S21", "S22", "S31"),
)
ACTOR = Limit(
    "actor",
    "who opened or closed a port is inferred from who holds it when the poll finds it",
    ("S09", "S12", "S24", "S30"),
)
EPHEMERAL_UDP = Limit(
    "ephemeral_udp",
    "a UDP port that the kernel chose cannot be told from one that a program bound: both are shown",
    ("S16",),
)
OTHER_NAMESPACES = Limit(
    "other_namespaces",
    "other network namespaces cannot be entered (CAP_SYS_ADMIN is missing): only our own is seen",
    ("S18",),
)
EMPTY_NAMESPACES = Limit(
    "empty_namespaces",
    "a network namespace that no process is in and no mount keeps is not found, and what listens there neither",
    ("S18",),
)
OTHER_OWNERS = Limit(
    "other_owners",
    "the sockets of other users' processes have no owner here (CAP_SYS_PTRACE is missing)",
)
COOKIES = Limit(
    "cookies",
    "a socket's cookie is told only if somebody asked for it before: the inode tells sockets apart",
)
TREES = Limit(
    "trees",
    "who belongs to a tree (--pid, --not-pid) is looked up in /proc when something happens: where it has ended "
    "by then, or one of those between it and the root has, it can be taken for one outside",
    ("T03", "T04", "T06", "T09"),
)
OUTSIDE = Limit(
    "outside",
    "with --pid, --cgroup or --container, what happens elsewhere is left out when it has been read, and not in "
    "the kernel: "
    "a storm there costs portwatch time",
)
BACKLOG_CHANGE = Limit("backlog_change", "a changed backlog is noticed at the next reconciliation", ("S04",))
