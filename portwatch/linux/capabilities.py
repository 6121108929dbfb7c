"""The capabilities that portwatch uses, and which of them this process has."""

from __future__ import annotations

import resource
from dataclasses import dataclass

from portwatch.linux.kernel import RELEASE


@dataclass(frozen=True, slots=True)
class Capability:
    """A Linux capability, and what portwatch needs it for."""

    name: str
    bit: int
    purpose: str


DAC_READ_SEARCH = Capability("CAP_DAC_READ_SEARCH", 2, "needed to find the cgroup of a process that has ended")
NET_ADMIN = Capability("CAP_NET_ADMIN", 12, "needed to attach programs to cgroups")
IPC_LOCK = Capability("CAP_IPC_LOCK", 14, "needed for bcc's buffers at full size, where ulimit -l is too low")
SYS_PTRACE = Capability("CAP_SYS_PTRACE", 19, "needed to see which sockets other users' processes hold")
SYS_ADMIN = Capability(
    "CAP_SYS_ADMIN", 21, "needed to enter other network namespaces, and to use tracefs if it is not mounted"
)
SYS_RESOURCE = Capability(
    "CAP_SYS_RESOURCE", 24, "needed to raise RLIMIT_MEMLOCK, which limits BPF only before Linux 5.11"
)
PERFMON = Capability("CAP_PERFMON", 38, "needed for programs that read kernel memory")
BPF = Capability("CAP_BPF", 39, "needed to load BPF programs")
ALL = (BPF, PERFMON, NET_ADMIN, SYS_PTRACE, SYS_ADMIN, DAC_READ_SEARCH, IPC_LOCK, SYS_RESOURCE)

_FOR_PROGRAMS = (BPF, PERFMON, NET_ADMIN)
"""The capabilities that are needed to load and attach BPF programs. CAP_SYS_ADMIN can replace each of them."""

MEMLOCK_UNUSED_SINCE = (5, 11)
"""The first kernel that charges BPF memory to the cgroup instead of to RLIMIT_MEMLOCK."""
RAISE_MEMLOCK = "ulimit -l unlimited (systemd: LimitMEMLOCK=infinity)"


def effective() -> int:
    """Return the effective capabilities of this process as a bit mask."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        return next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))


def has(capability: Capability, capabilities: int) -> bool:
    """Return True if the bit mask contains the capability, or CAP_SYS_ADMIN where that can replace it."""
    is_replaced = capability in _FOR_PROGRAMS and has(SYS_ADMIN, capabilities)
    return bool(capabilities >> capability.bit & 1) or is_replaced


def missing_for_programs() -> list[str]:
    """Return the names of the capabilities that BPF programs need and this process lacks."""
    capabilities = effective()
    return [capability.name for capability in _FOR_PROGRAMS if not has(capability, capabilities)]


def memlock() -> int | None:
    """Return the RLIMIT_MEMLOCK that limits BPF, in bytes. None if it is unlimited or can be raised."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    is_unlimited = RELEASE >= MEMLOCK_UNUSED_SINCE or soft == resource.RLIM_INFINITY
    return None if is_unlimited or has(SYS_RESOURCE, effective()) else soft
