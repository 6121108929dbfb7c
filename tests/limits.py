"""The limits that each engine is expected to declare on this kernel."""

import functools
import os
import re

from support import has_mptcp

RELEASE = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))


@functools.cache
def kernel_functions():
    """Return the names of this kernel's functions."""
    with open("/proc/kallsyms") as file:
        return {line.split()[2] for line in file}


def expected_limits(engine, hooks):
    """Return the names of the limits that an engine with these hooks has on this kernel when root runs it."""
    always, *others = LIMITS[engine, hooks]
    return set(always.split()).union(*(names.split() for names, applies in others if applies()))


WITHOUT_COOKIE_HELPER = ("cookies outside", lambda: RELEASE < (5, 12))
WITHOUT_ITERATOR = ("outside ephemeral_udp empty_namespaces bound_holders", lambda: RELEASE < (5, 12))
"""bcc's socket iterator needs BPF helpers that 5.12 added. On older kernels, bcc uses sock_diag instead.

sock_diag does not list sockets that are bound but do not listen.
"""
WITHOUT_MPTCP = (
    "mptcp_failures",
    lambda: has_mptcp() and {"mptcp_listen", "mptcp_bind"} - kernel_functions(),
)
"""Applies if the kernel has MPTCP, but the compiler has inlined the functions that the kprobes need."""

LIMITS = {
    ("core", "fentry"): ("",),
    ("core", "stable"): (
        "udp_connect udp_autobind io_uring_failures compat_failures",
        WITHOUT_COOKIE_HELPER,
    ),
    ("bcc", "kprobes"): ("udp_connect refused_udp cookies", WITHOUT_ITERATOR, WITHOUT_MPTCP),
    ("bcc", "stable"): ("udp_connect udp_autobind io_uring_failures compat_failures", WITHOUT_ITERATOR),
    ("poll", "sock_diag"): (
        "short_lived failures io_uring_failures compat_failures actor ephemeral_udp udp_connect"
        " backlog_change empty_namespaces trees outside",
    ),
}
"""For each engine and hook set: its limits on every kernel, then (limits, condition) pairs.

The limits of a pair apply only on kernels where its condition is true.
"""
