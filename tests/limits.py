"""What each engine may fail to see, by what the kernel has: whatever else it lacks is a defect, not a limit."""

import functools
import os
import re

from support import has_mptcp

RELEASE = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))


@functools.cache
def kernel_functions():
    """The names of the functions that this kernel was built with."""
    with open("/proc/kallsyms") as file:
        return {line.split()[2] for line in file}


def allowed(engine, hooks):
    """The names of the limits that an engine has on a set of hooks, run by root on this kernel."""
    always, *others = LIMITS[engine, hooks]
    return set(always.split()).union(*(names.split() for names, applies in others if applies()))


WITHOUT_COOKIE_HELPER = ("cookies outside", lambda: RELEASE < (5, 12))
WITHOUT_ITERATOR = ("outside ephemeral_udp empty_namespaces bound_holders", lambda: RELEASE < (5, 12))
"""bcc's calls helpers that came later than iterators; sock_diag, in its place, lists no bound sockets there."""
WITHOUT_MPTCP = (
    "mptcp_failures",
    lambda: has_mptcp() and {"mptcp_listen", "mptcp_bind"} - kernel_functions(),
)
"""It may be there, and its functions be in others."""

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
"""By engine and hooks: what is never seen, and what is not on kernels to which something applies."""
