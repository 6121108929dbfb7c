"""The limits of engines, which say what an engine cannot see.

The limits are data, because doctor, /readyz, the table of engines in the docs, and the tests all read them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limit:
    """Something that an engine does not see, or does not see as it happens."""

    name: str
    text: str
    scenarios: tuple[str, ...] = ()
    """The scenarios of tests/kernel that an engine with this limit may fail."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """The hooks that an engine uses on this machine, and their limits."""

    engine: str
    hooks: str
    limits: tuple[Limit, ...] = ()
    why: str | None = None
    """The reason why better hooks are not used, or None if the best hooks are used."""

    def has_limit(self, name: str) -> bool:
        """Return True if this engine has the limit of that name."""
        return any(limit.name == name for limit in self.limits)


UDP_CONNECT = Limit(
    "udp_connect",
    "when a bound UDP socket connects to a peer (and so stops serving others), or disconnects, this is noticed "
    "only at the next reconciliation",
    ("S17",),
)
UDP_AUTOBIND = Limit(
    "udp_autobind",
    "with --ephemeral, a UDP port taken without bind() is noticed only at the next reconciliation",
    ("S16",),
)
IO_URING_FAILURES = Limit(
    "io_uring_failures", "bind and listen requests that fail in io_uring are not reported"
)
COMPAT_FAILURES = Limit(
    "compat_failures", "failed bind() and listen() calls of 32-bit programs are not reported"
)
FAILURES = Limit("failures", "failed bind() and listen() calls are not reported", ("S05", "S06", "S07"))
BIND_FAILURES = Limit("bind_failures", "failed bind() calls are not reported", ("S06", "S07"))
LISTEN_FAILURES = Limit("listen_failures", "failed listen() calls are not reported", ("S05",))
BOUND_HOLDERS = Limit(
    "bound_holders",
    "when a bind() fails because of a process that has bound the port but does not listen on it, that process "
    "is not named",
    ("S06",),
)
MPTCP_FAILURES = Limit(
    "mptcp_failures",
    "failed bind() and listen() calls on MPTCP sockets are not reported, and a changed backlog of an MPTCP "
    "socket is noticed only at the next reconciliation",
)
REFUSED_UDP = Limit(
    "refused_udp",
    "if the kernel assigns a UDP port and a cgroup BPF program then refuses the bind, the port is shown "
    "as open until the next reconciliation",
)
UDP = Limit("udp", "UDP ports are noticed only at the next reconciliation", ("S15", "S16", "S17"))
SHORT_LIVED = Limit(
    "short_lived",
    "a port that opens and closes between two polls is not seen",
    ("S08", "S21", "S22", "S31"),
)
ACTOR = Limit(
    "actor",
    "the process that opened or closed a port is inferred from the processes that hold the port at the time of "
    "the poll",
    ("S09", "S12", "S24", "S30"),
)
EPHEMERAL_UDP = Limit(
    "ephemeral_udp",
    "UDP ports that the kernel chose cannot be told from UDP ports that a program bound: both are shown",
    ("S16",),
)
OTHER_NAMESPACES = Limit(
    "other_namespaces",
    "only our own network namespace is seen, because entering others requires CAP_SYS_ADMIN",
    ("S18",),
)
EMPTY_NAMESPACES = Limit(
    "empty_namespaces",
    "a network namespace that has neither a process nor a mount is not found, so its ports are not seen",
    ("S18",),
)
OTHER_OWNERS = Limit(
    "other_owners",
    "sockets of other users' processes are shown without an owner, because CAP_SYS_PTRACE is missing",
)
COOKIES = Limit(
    "cookies",
    "a socket has no cookie until some program requests it; until then, the inode identifies the socket",
)
TREES = Limit(
    "trees",
    "whether a process belongs to a tree (--pid, --not-pid) is read from /proc after the event; if the process "
    "or one of its ancestors has exited by then, the process may count as outside the tree",
    ("T03", "T04", "T06", "T09"),
)
OUTSIDE = Limit(
    "outside",
    "--pid, --cgroup and --container are applied after a record has been read, not in the kernel, so a storm "
    "of other events costs portwatch CPU time",
)
BACKLOG_CHANGE = Limit(
    "backlog_change", "a changed backlog is noticed only at the next reconciliation", ("S04",)
)
