"""The two sets of hooks, as data; one is attached as a whole.

In the order in which they are attached: what sees closes comes first, so that no open
is seen whose close is not.
"""

from __future__ import annotations

from dataclasses import dataclass

from portwatch.engines import capabilities as caps
from portwatch.engines.bcc import syscalls


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
    lost: caps.Limit | None = None
    """What is not seen where the kernel has no such function; None where nothing is exact without."""


STABLE_NAME = "stable"
CGROUP = (
    CgroupHook("udp_released", syscalls.CGROUP_SOCK, 34),
    CgroupHook("listen_opened", syscalls.SOCK_OPS, 3),
    CgroupHook("bind_asked", syscalls.CGROUP_SOCK_ADDR, 8),
    CgroupHook("bind_asked", syscalls.CGROUP_SOCK_ADDR, 9),
    CgroupHook("udp_bound", syscalls.CGROUP_SOCK, 12),
    CgroupHook("udp_bound", syscalls.CGROUP_SOCK, 13),
)
RAW_TRACEPOINTS = {"listen_closed": "inet_sock_set_state"}
TRACEPOINTS = {
    "bind_entered": "syscalls/sys_enter_bind",
    "bind_exited": "syscalls/sys_exit_bind",
    "listen_entered": "syscalls/sys_enter_listen",
    "listen_exited": "syscalls/sys_exit_listen",
}
"""Failures, and changes of the backlog. They tax every syscall of every thread (see bench/)."""
STABLE_LIMITS = (caps.UDP_CONNECT, caps.UDP_AUTOBIND, caps.IO_URING_FAILURES, caps.COMPAT_FAILURES)

KPROBES_NAME = "kprobes"
KPROBES = (
    Kprobe("inet_csk_listen_stop", "listen_stops"),
    Kprobe("inet_release", "udp_releases", None, caps.UDP),
    Kprobe("inet_csk_listen_start", "listen_starts", "listen_started"),
    Kprobe("udp_lib_get_port", "udp_takes", "udp_taken", caps.UDP),
)
FAILURE_KPROBES = (
    Kprobe("inet_listen", "socket_listens", "socket_listened", caps.LISTEN_FAILURES),
    Kprobe("mptcp_listen", "socket_listens", "socket_listened", caps.MPTCP_FAILURES),
    Kprobe("inet_bind", "socket_binds", "socket_bound", caps.BIND_FAILURES),
    Kprobe("inet6_bind", "socket_binds", "socket_bound", caps.BIND_FAILURES),
    Kprobe("mptcp_bind", "socket_binds", "socket_bound", caps.MPTCP_FAILURES),
)
KPROBES_LIMITS = (caps.UDP_CONNECT, caps.COOKIES)

FORKS = {"process_exited": "sched_process_exit", "process_forked": "sched_process_fork"}
"""Programs that keep process trees, with either set; attached when the first tree is watched."""
