"""What every engine depends on: the kernel, our capabilities, file systems and namespaces."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator

from portwatch.engines.diagnosis import Check, Fact, State, run_checks
from portwatch.linux import capabilities, kernel, mounts, netns, procfs
from portwatch.linux.kernel import VMLINUX


def diagnose() -> Iterator[Fact]:
    """Yield the facts."""
    return run_checks(_CHECKS)


def _kernel() -> tuple[State, str, str | None]:
    system = os.uname()
    return "ok", f"{system.release} on {system.machine}", None


def _btf() -> tuple[State, str, str | None]:
    if VMLINUX.exists():
        return "ok", f"{VMLINUX} describes the kernel's fields", None
    return (
        "limited",
        f"{VMLINUX} is missing: core cannot find the kernel's fields, bcc needs the kernel's headers for it",
        f"apt-get install python3-bpfcc linux-headers-{os.uname().release}; or boot a kernel with "
        "CONFIG_DEBUG_INFO_BTF (5.8 or later; every current distribution's has it)",
    )


def _lockdown() -> tuple[State, str, str | None]:
    mode = kernel.lockdown()
    if mode is None:
        return (
            "limited",
            "not known, as securityfs is not ours to read: at confidentiality, programs could not read the "
            "kernel's memory",
            "CAP_SYS_ADMIN, or in a container -v /sys/kernel/security:/sys/kernel/security:ro",
        )
    if mode == kernel.CONFIDENTIALITY:
        return "not ok", f"{mode}: programs may not read the kernel's memory", kernel.LOCKDOWN_HELP
    return "ok", mode, None


def _capabilities() -> tuple[State, str, str | None]:
    held = capabilities.effective()
    missing = [right for right in capabilities.ALL if not capabilities.has(right, held)]
    if not missing:
        return "ok", f"{', '.join(right.name for right in capabilities.ALL)} are held", None
    text = "; ".join(f"{right.name} is missing ({right.purpose})" for right in missing)
    if capabilities.missing_for_programs():
        return "not ok", text, "run it as root (sudo portwatch), or give these capabilities to its service"
    only_old_kernels_care = (
        missing == [capabilities.SYS_RESOURCE] and kernel.RELEASE >= capabilities.COUNTS_BPF_BY_CGROUP
    )
    return "ok" if only_old_kernels_care else "limited", text, None


def _memlock() -> tuple[State, str, str | None]:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    amount = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    if kernel.RELEASE >= capabilities.COUNTS_BPF_BY_CGROUP:
        return "ok", f"{amount}, which this kernel does not apply to BPF", None
    if capabilities.memlock() is None:
        return "ok", f"{amount}, and can be raised", None
    return "limited", f"{amount}, and cannot be raised", capabilities.RAISE_MEMLOCK


def _cgroup() -> tuple[State, str, str | None]:
    os.close(mounts.open_cgroup_root())
    return "ok", "the true root of cgroup v2 can be opened", None


def _tracefs() -> tuple[State, str, str | None]:
    try:
        os.close(mounts.open_file_system("tracefs"))
    except OSError as error:
        return (
            "limited",
            f"not to be had ({error.strerror}): binds and listens that fail are not reported",
            "mount -t tracefs tracefs /sys/kernel/tracing (as root)",
        )
    point = next((mount.point for mount in mounts.mounts() if mount.kind == "tracefs"), None)
    return "ok", f"mounted at {point}" if point else "mounted nowhere, and can be had without", None


def _namespaces() -> tuple[State, str, str | None]:
    here, shown = netns.own().inode, netns.all_namespaces()
    barred = [namespace for namespace in shown if namespace.inode != here and not _can_enter(namespace)]
    if barred or not capabilities.has(capabilities.SYS_ADMIN, capabilities.effective()):
        return (
            "limited",
            "none but our own can be entered"
            if len(barred) == len(shown) - 1
            else f"{len(barred)} cannot be entered",
            "CAP_SYS_ADMIN, with which poll sees what is open in the others, too",
        )
    return "ok", f"{len(shown)} network namespaces are shown, and can be entered", None


def _can_enter(namespace: netns.Namespace) -> bool:
    try:
        with netns.entered(namespace):
            return True
    except FileNotFoundError:
        return True  # it has ended since it was listed, and bars nobody
    except OSError:
        return False


def _proc() -> tuple[State, str, str | None]:
    if not procfs.shows_kernel_pids():
        return (
            "limited",
            f"{procfs.root()} is of a pid namespace of its own, and has other pids than BPF tells: core and "
            "bcc tell nothing of a process that only /proc knows (as its container, where cgroups are of v1)",
            "docker run --pid=host; or -v /proc:/host/proc:ro -e HOST_PROC=/host/proc (or --procfs /host/proc)",
        )
    hidden = _hidepid()
    if not hidden:
        return "ok", f"every process is shown ({len(procfs.pids())})", None
    text = f"mounted with hidepid={hidden}"
    if capabilities.has(capabilities.SYS_PTRACE, capabilities.effective()):
        return "ok", f"{text}, from which CAP_SYS_PTRACE exempts us", None
    return (
        "limited",
        f"{text}: other users' processes, and so the owners of their ports, are not shown",
        "CAP_SYS_PTRACE, or the group that the mount's option gid= names",
    )


def _hidepid() -> str | None:
    seen = ""
    for mount in mounts.mounts():
        if mount.point == procfs.root():
            seen = mount.options  # of the last one that was mounted there
    option = re.search(r"(?:^|,)hidepid=(\w+)", seen)
    return None if not option or option[1] in ("0", "off") else option[1]


_CHECKS: dict[str, Check] = {
    "kernel": _kernel,
    "btf": _btf,
    "lockdown": _lockdown,
    "capabilities": _capabilities,
    "memlock": _memlock,
    "cgroup v2": _cgroup,
    "tracefs": _tracefs,
    "namespaces": _namespaces,
    "proc": _proc,
}
