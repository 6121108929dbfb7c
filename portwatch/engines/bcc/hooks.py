"""The two sets of hooks, as data; one is attached as a whole.

In the order in which they are attached: what sees closes comes first, so that no open
is seen whose close is not.
"""

from __future__ import annotations

from dataclasses import dataclass

from portwatch.engines import limits as caps
from portwatch.engines.bcc import syscalls
from portwatch.engines.core.hooks import STABLE


@dataclass(frozen=True, slots=True)
class CgroupHook:
    """A program at the root cgroup, by the kernel's numbers for its kind and its place."""

    program: str
    kind: int
    attach_type: int


@dataclass(frozen=True, slots=True)
class Kprobe:
    """A function of the kernel's, and the programs at its entry and at its exit."""

    function: str
    entry: str
    exit: str | None = None
    lost: tuple[caps.Limit, ...] = ()
    """What is not seen where none can sit on it; nothing is said where nothing is exact without."""


STABLE_NAME = STABLE.name
CGROUP = (
    CgroupHook("udp_released", syscalls.CGROUP_SOCK, 34),
    CgroupHook("listen_opened", syscalls.SOCK_OPS, 3),
    CgroupHook("bind_asked", syscalls.CGROUP_SOCK_ADDR, 8),
    CgroupHook("bind_asked", syscalls.CGROUP_SOCK_ADDR, 9),
    CgroupHook("udp_bound", syscalls.CGROUP_SOCK, 12),
    CgroupHook("udp_bound", syscalls.CGROUP_SOCK, 13),
)
RAW_TRACEPOINTS = {"listen_closed": "inet_sock_set_state"}
TRACEPOINTS = STABLE.tracepoints
STABLE_LIMITS = STABLE.limits
WITHOUT_FAILURES = STABLE.without_failures

KPROBES_NAME = "kprobes"
KPROBES: tuple[Kprobe, ...] = (
    Kprobe("inet_csk_listen_stop", "listen_stops"),
    Kprobe("inet_release", "udp_releases", None, (caps.UDP,)),
    Kprobe("inet_csk_listen_start", "listen_starts", "listen_started"),
    Kprobe("udp_lib_get_port", "udp_takes", "udp_taken", (caps.UDP,)),
)
FAILURE_KPROBES = (
    Kprobe("inet_listen", "socket_listens", "socket_listened", (caps.LISTEN_FAILURES, caps.BACKLOG_CHANGE)),
    Kprobe("inet_bind", "socket_binds", "socket_bound", (caps.BIND_FAILURES,)),
    Kprobe("inet6_bind", "socket_binds", "socket_bound", (caps.BIND_FAILURES,)),
)
MPTCP_KPROBES = (
    Kprobe("mptcp_listen", "socket_listens", "socket_listened", (caps.MPTCP_FAILURES,)),
    Kprobe("mptcp_bind", "socket_binds", "socket_bound", (caps.MPTCP_FAILURES,)),
)
"""For failures, too, where the kernel has MPTCP."""
KPROBES_LIMITS = (caps.UDP_CONNECT, caps.REFUSED_UDP, caps.COOKIES)
