"""The two sets of hooks that bcc's programs attach to: kprobes and stable hooks.

Only one set is attached at a time. Its programs are attached in the order given here. Programs that see closes
come first, so that no open is reported whose close is missed.
"""

from __future__ import annotations

from dataclasses import dataclass

from portwatch.engines import limits
from portwatch.engines.bcc import syscalls
from portwatch.engines.limits import Limit


@dataclass(frozen=True, slots=True)
class CgroupHook:
    """A program for the root cgroup, with its BPF_PROG_TYPE and its attach type."""

    program: str
    kind: int
    attach_type: int


@dataclass(frozen=True, slots=True)
class Kprobe:
    """A kernel function, and the programs for its entry and its exit."""

    function: str
    entry: str
    exit: str | None = None
    limits_without: tuple[Limit, ...] = ()
    """The limits that apply if this kprobe cannot be attached.

    If this is empty, the whole set of kprobes is useless without this kprobe."""


CGROUP = (
    CgroupHook("cgroup_sock_release", syscalls.CGROUP_SOCK, 34),
    CgroupHook("sockops_listen", syscalls.SOCK_OPS, 3),
    CgroupHook("cgroup_bind", syscalls.CGROUP_SOCK_ADDR, 8),
    CgroupHook("cgroup_bind", syscalls.CGROUP_SOCK_ADDR, 9),
    CgroupHook("cgroup_post_bind", syscalls.CGROUP_SOCK, 12),
    CgroupHook("cgroup_post_bind", syscalls.CGROUP_SOCK, 13),
)
RAW_TRACEPOINTS = {"sock_set_state": "inet_sock_set_state"}

KPROBES_NAME = "kprobes"
KPROBES: tuple[Kprobe, ...] = (
    Kprobe("inet_csk_listen_stop", "inet_csk_listen_stop_entry"),
    Kprobe("inet_release", "inet_release_entry", None, (limits.UDP,)),
    Kprobe("inet_csk_listen_start", "inet_csk_listen_start_entry", "inet_csk_listen_start_exit"),
    Kprobe("udp_lib_get_port", "udp_lib_get_port_entry", "udp_lib_get_port_exit", (limits.UDP,)),
)
FAILURE_KPROBES = (
    Kprobe("inet_listen", "listen_entry", "listen_exit", (limits.LISTEN_FAILURES, limits.BACKLOG_CHANGE)),
    Kprobe("inet_bind", "bind_entry", "bind_exit", (limits.BIND_FAILURES,)),
    Kprobe("inet6_bind", "bind_entry", "bind_exit", (limits.BIND_FAILURES,)),
)
MPTCP_KPROBES = (
    Kprobe("mptcp_listen", "listen_entry", "listen_exit", (limits.MPTCP_FAILURES,)),
    Kprobe("mptcp_bind", "bind_entry", "bind_exit", (limits.MPTCP_FAILURES,)),
)
"""Additional kprobes that see failures on MPTCP sockets. Used if the kernel supports MPTCP."""
KPROBES_LIMITS = (limits.UDP_CONNECT, limits.REFUSED_UDP, limits.COOKIES)
