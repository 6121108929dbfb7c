"""The capabilities of this process, and what each is for."""

from __future__ import annotations

import resource
from dataclasses import dataclass

from portwatch.linux.kernel import RELEASE


@dataclass(frozen=True, slots=True)
class Capability:
    """A capability, by its number in the kernel."""

    name: str
    bit: int
    purpose: str


DAC_READ_SEARCH = Capability("CAP_DAC_READ_SEARCH", 2, "finding the cgroup of a process that has ended")
NET_ADMIN = Capability("CAP_NET_ADMIN", 12, "attaching programs to cgroups")
IPC_LOCK = Capability("CAP_IPC_LOCK", 14, "bcc's buffers at their full size, where ulimit -l does not suffice")
SYS_PTRACE = Capability("CAP_SYS_PTRACE", 19, "reading which files other users' processes hold")
SYS_ADMIN = Capability(
    "CAP_SYS_ADMIN", 21, "entering other network namespaces; tracefs where nobody has mounted it"
)
SYS_RESOURCE = Capability(
    "CAP_SYS_RESOURCE", 24, "raising RLIMIT_MEMLOCK, which only kernels before 5.11 ask for"
)
PERFMON = Capability("CAP_PERFMON", 38, "programs that read the kernel's memory")
BPF = Capability("CAP_BPF", 39, "loading BPF programs")
ALL = (BPF, PERFMON, NET_ADMIN, SYS_PTRACE, SYS_ADMIN, DAC_READ_SEARCH, IPC_LOCK, SYS_RESOURCE)

_FOR_PROGRAMS = (BPF, PERFMON, NET_ADMIN)
"""What CAP_SYS_ADMIN, alone the key before 5.8, stands for still."""

COUNTS_BPF_BY_CGROUP = (5, 11)
"""From this kernel on the memory of BPF is the cgroup's, whatever RLIMIT_MEMLOCK says."""
RAISE_MEMLOCK = "ulimit -l unlimited (systemd: LimitMEMLOCK=infinity)"


def effective() -> int:
    """The set of capabilities that this process has."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        return next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))


def has(right: Capability, capabilities: int) -> bool:
    """Whether a right is among the capabilities, by itself or by CAP_SYS_ADMIN."""
    by_admin = right in _FOR_PROGRAMS and has(SYS_ADMIN, capabilities)
    return bool(capabilities >> right.bit & 1) or by_admin


def missing_for_programs() -> list[str]:
    """The names of the capabilities that loading and attaching programs lacks."""
    capabilities = effective()
    return [right.name for right in _FOR_PROGRAMS if not has(right, capabilities)]


def memlock() -> int | None:
    """RLIMIT_MEMLOCK in bytes, where this kernel keeps BPF to it and we may not raise it."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    is_free = RELEASE >= COUNTS_BPF_BY_CGROUP or soft == resource.RLIM_INFINITY
    return None if is_free or has(SYS_RESOURCE, effective()) else soft
