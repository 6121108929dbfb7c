"""Checks of what every engine depends on: the kernel, capabilities, file systems and namespaces."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator

from portwatch.engines.diagnosis import Check, Fact, Finding, run_checks
from portwatch.linux import capabilities, kernel, mounts, netns, procfs
from portwatch.linux.kernel import VMLINUX


def _kernel() -> Finding:
    system = os.uname()
    return Finding("ok", f"{system.release} on {system.machine}")


def _btf() -> Finding:
    if VMLINUX.exists():
        return Finding("ok", f"{VMLINUX} describes the kernel's types")
    return Finding(
        "limited",
        f"{VMLINUX} is missing: core cannot run, and bcc needs the kernel's headers instead",
        f"apt-get install python3-bpfcc linux-headers-{os.uname().release}; or boot a kernel with "
        "CONFIG_DEBUG_INFO_BTF (5.8 or later; every current distribution enables it)",
    )


def _lockdown() -> Finding:
    mode = kernel.lockdown()
    if mode is None:
        return Finding(
            "limited",
            "unknown, because securityfs cannot be read; in confidentiality mode, BPF programs may not read "
            "kernel memory",
            "grant CAP_SYS_ADMIN; or, if this is a container, start it with "
            "-v /sys/kernel/security:/sys/kernel/security:ro",
        )
    if mode == kernel.CONFIDENTIALITY:
        return Finding("not ok", f"{mode}: BPF programs may not read kernel memory", kernel.LOCKDOWN_HELP)
    return Finding("ok", mode)


def _capabilities() -> Finding:
    effective = capabilities.effective()
    missing = [right for right in capabilities.ALL if not capabilities.has(right, effective)]
    if not missing:
        return Finding("ok", f"{', '.join(right.name for right in capabilities.ALL)} are effective")
    text = "; ".join(f"{right.name} is missing ({right.purpose})" for right in missing)
    if capabilities.missing_for_programs():
        return Finding(
            "not ok", text, "run portwatch as root (sudo portwatch), or give its service these capabilities"
        )
    only_old_kernels_care = (
        missing == [capabilities.SYS_RESOURCE] and kernel.RELEASE >= capabilities.MEMLOCK_UNUSED_SINCE
    )
    return Finding("ok" if only_old_kernels_care else "limited", text)


def _memlock() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    amount = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    if kernel.RELEASE >= capabilities.MEMLOCK_UNUSED_SINCE:
        return Finding("ok", f"{amount}, which this kernel does not apply to BPF")
    if capabilities.memlock() is None:
        return Finding("ok", f"{amount}, which can be raised")
    return Finding("limited", f"{amount}, which cannot be raised", capabilities.RAISE_MEMLOCK)


def _cgroup() -> Finding:
    os.close(mounts.open_cgroup_root())
    return Finding("ok", "the root of the cgroup v2 hierarchy can be opened")


def _tracefs() -> Finding:
    try:
        os.close(mounts.open_file_system("tracefs"))
    except OSError as error:
        return Finding(
            "limited",
            f"not available ({error.strerror}): failed bind() and listen() calls are not reported",
            "mount -t tracefs tracefs /sys/kernel/tracing (as root)",
        )
    point = next((mount.point for mount in mounts.mounts() if mount.kind == "tracefs"), None)
    return Finding("ok", f"mounted at {point}" if point else "not mounted, but can be opened without a mount")


def _namespaces() -> Finding:
    own, namespaces = netns.own().inode, netns.all_namespaces()
    barred = [namespace for namespace in namespaces if namespace.inode != own and not _can_enter(namespace)]
    if barred or not capabilities.has(capabilities.SYS_ADMIN, capabilities.effective()):
        return Finding(
            "limited",
            "only our own network namespace can be entered"
            if len(barred) == len(namespaces) - 1
            else f"{len(barred)} of {len(namespaces)} network namespaces cannot be entered",
            "grant CAP_SYS_ADMIN, so that poll sees the open ports of the other namespaces",
        )
    return Finding("ok", f"{len(namespaces)} network namespaces are visible and can be entered")


def _can_enter(namespace: netns.Namespace) -> bool:
    try:
        with netns.entered(namespace):
            return True
    except FileNotFoundError:
        return True  # the namespace has ended since it was listed
    except OSError:
        return False


def _proc() -> Finding:
    if not procfs.shows_kernel_pids():
        return Finding(
            "limited",
            f"{procfs.root()} belongs to another pid namespace: its pids differ from those of BPF programs, so "
            "core and bcc cannot report what only /proc knows about a process (on cgroup v1, its container)",
            "docker run --pid=host; or -v /proc:/host/proc:ro -e HOST_PROC=/host/proc (or --procfs /host/proc)",
        )
    hidepid = _hidepid()
    if not hidepid:
        return Finding("ok", f"all processes are visible ({len(procfs.pids())})")
    text = f"mounted with hidepid={hidepid}"
    if capabilities.has(capabilities.SYS_PTRACE, capabilities.effective()):
        return Finding("ok", f"{text}, but CAP_SYS_PTRACE makes all processes visible to us")
    return Finding(
        "limited",
        f"{text}: other users' processes are hidden, and so are the owners of their ports",
        "grant CAP_SYS_PTRACE, or run portwatch in the group that the mount option gid= names",
    )


def _hidepid() -> str | None:
    options = ""
    for mount in mounts.mounts():
        if mount.point == procfs.root():
            options = mount.options  # the last mount at a path hides the earlier ones
    hidepid = re.search(r"(?:^|,)hidepid=(\w+)", options)
    return None if not hidepid or hidepid[1] in ("0", "off") else hidepid[1]


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


def diagnose() -> Iterator[Fact]:
    """Yield the facts that all engines depend on."""
    return run_checks(_CHECKS)
