"""The sets of hooks that the programs sit on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from portwatch.engines import limits as caps


@dataclass(frozen=True, slots=True)
class HookSet:
    """Programs that together see everything once; sets are not mixed."""

    name: str
    limits: tuple[caps.Limit, ...]
    without_failures: tuple[caps.Limit, ...]
    """What else is not seen where failures are not asked for, or not to be had."""
    tracing: tuple[str, ...]
    """Programs whose section says all about where they are attached; those that see closes come first."""
    cgroup: tuple[str, ...] = ()
    """Attached behind these, in the same order."""
    tracepoints: Mapping[str, str] = field(default_factory=dict)
    """For failures: program to syscall tracepoint. These tax every syscall of every thread (see bench/)."""
    for_failures: tuple[str, ...] = ()
    """Tracing programs that see failures only."""
    for_ephemeral: tuple[str, ...] = ()
    """Tracing programs that see ports that the kernel chose only."""
    without_socket_helpers: tuple[caps.Limit, ...] = ()
    """What else is not seen before 5.12."""
    needs_socket_helpers: bool = False
    """Whether nothing else would give it a socket's cookie; tracing programs may ask for it from 5.12 on."""
    on_functions: bool = False
    """Whether its programs sit on functions of the kernel, as some forbid."""
    where_there: Mapping[str, str] = field(default_factory=dict)
    """Program to the kernel's function without which it is left out, and nothing with it."""


FENTRY = HookSet(
    name="fentry",
    limits=(),
    without_failures=(caps.FAILURES,),
    tracing=(
        "listen_stopped",
        "udp_unhashed",
        "udp_connected4",
        "udp_connected6",
        "listen_started",
        "listen_called",
        "subflow_listen_called",
        "bind4_returned",
        "bind6_returned",
        "udp_disconnected",
    ),
    for_failures=(
        "listen_returned",
        "subflow_listen_returned",
        "subflow_bind4_returned",
        "subflow_bind6_returned",
    ),
    for_ephemeral=("udp_port_chosen",),
    needs_socket_helpers=True,
    on_functions=True,
    where_there={
        "subflow_listen_called": "__inet_listen_sk",
        "subflow_listen_returned": "__inet_listen_sk",
        "subflow_bind4_returned": "inet_bind_sk",
        "subflow_bind6_returned": "inet6_bind_sk",
    },
)

STABLE = HookSet(
    name="stable",
    limits=(caps.UDP_CONNECT, caps.UDP_AUTOBIND, caps.IO_URING_FAILURES, caps.COMPAT_FAILURES),
    without_failures=(caps.FAILURES, caps.BACKLOG_CHANGE),
    without_socket_helpers=(caps.COOKIES, caps.OUTSIDE),
    tracing=("listen_closed",),
    cgroup=("udp_released", "bind4_asked", "bind6_asked", "udp_bound4", "udp_bound6", "listen_opened"),
    tracepoints={
        "bind_entered": "syscalls/sys_enter_bind",
        "bind_exited": "syscalls/sys_exit_bind",
        "listen_entered": "syscalls/sys_enter_listen",
        "listen_exited": "syscalls/sys_exit_listen",
    },
)

FORKS = {"process_exited": "sched_process_exit", "process_forked": "sched_process_fork"}
"""Programs that keep process trees, and their tracepoints, with any set; attached for the first tree."""

HOOK_SETS = {hooks.name: hooks for hooks in (FENTRY, STABLE)}
"""The best first."""
