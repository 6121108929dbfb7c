"""The sets of hooks that core's programs attach to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from portwatch.engines import common_hooks, limits
from portwatch.engines.limits import Limit


@dataclass(frozen=True, slots=True)
class HookSet:
    """A set of programs that together see every event exactly once. Only one set is attached at a time."""

    name: str
    limits: tuple[Limit, ...]
    without_failures: tuple[Limit, ...]
    """Additional limits when failures are not requested or cannot be seen."""
    tracing: tuple[str, ...]
    """Programs whose ELF section names their attach point. The programs that see closes come first."""
    cgroup: tuple[str, ...] = ()
    """Programs for the root cgroup, attached after `tracing`. The programs that see closes come first."""
    tracepoints: Mapping[str, str] = field(default_factory=dict)
    """Programs that see failures, and the syscall tracepoints that they attach to."""
    for_failures: tuple[str, ...] = ()
    """Tracing programs that are needed for failures only."""
    for_ephemeral: tuple[str, ...] = ()
    """Tracing programs that are needed for ephemeral UDP ports only."""
    without_socket_helpers: tuple[Limit, ...] = ()
    """Additional limits before 5.12, where tracing programs cannot call the helpers that take a socket."""
    needs_socket_helpers: bool = False
    """True if the set cannot work without these helpers, because it needs them to get a socket's cookie."""
    uses_fentry: bool = False
    optional: Mapping[str, str] = field(default_factory=dict)
    """Programs, and the kernel functions that they attach to.

    If the kernel lacks the function, the program is left out, and no event is missed."""


FENTRY = HookSet(
    name="fentry",
    limits=(),
    without_failures=(limits.FAILURES,),
    tracing=(
        "inet_csk_listen_stop_entry",
        "udp_lib_unhash_entry",
        "ip4_datagram_connect_exit",
        "ip6_datagram_connect_exit",
        "inet_csk_listen_start_exit",
        "inet_listen_entry",
        "inet_listen_sk_entry",
        "inet_bind_exit",
        "inet6_bind_exit",
        "udp_disconnect_exit",
    ),
    for_failures=(
        "inet_listen_exit",
        "inet_listen_sk_exit",
        "inet_bind_sk_exit",
        "inet6_bind_sk_exit",
    ),
    for_ephemeral=("udp_lib_get_port_exit",),
    needs_socket_helpers=True,
    uses_fentry=True,
    optional={
        "inet_listen_sk_entry": "__inet_listen_sk",
        "inet_listen_sk_exit": "__inet_listen_sk",
        "inet_bind_sk_exit": "inet_bind_sk",
        "inet6_bind_sk_exit": "inet6_bind_sk",
    },
)

STABLE = HookSet(
    name=common_hooks.STABLE_NAME,
    limits=common_hooks.STABLE_LIMITS,
    without_failures=common_hooks.LIMITS_WITHOUT_FAILURES,
    without_socket_helpers=(limits.COOKIES, limits.OUTSIDE),
    tracing=("sock_set_state",),
    cgroup=(
        "cgroup_sock_release",
        "cgroup_bind4",
        "cgroup_bind6",
        "cgroup_post_bind4",
        "cgroup_post_bind6",
        "sockops_listen",
    ),
    tracepoints=common_hooks.SYSCALL_TRACEPOINTS,
)

HOOK_SETS = {hooks.name: hooks for hooks in (FENTRY, STABLE)}
"""The sets of hooks by name, best first."""
