"""Texts about missing permissions, which the errors of several engines have in common."""

from __future__ import annotations

from portwatch.linux import capabilities

ASK_DOCTOR = "run portwatch doctor to see what this machine allows"
ROOT_CGROUP_IS_TAKEN = (
    "another tool holds the root cgroup exclusively (bpftool cgroup show /sys/fs/cgroup lists its programs)"
)


def missing_capabilities() -> str | None:
    """Return which capabilities for BPF programs are missing, and what to do, or None if all are there."""
    missing = capabilities.missing_for_programs()
    return f"missing {', '.join(missing)}; run portwatch as root (sudo portwatch)" if missing else None
