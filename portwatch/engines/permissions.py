"""Texts about missing permissions, which the errors of several engines have in common."""

from __future__ import annotations

from portwatch.linux import capabilities

ASK_DOCTOR = "run portwatch doctor to see what this machine allows"
ROOT_CGROUP_IS_TAKEN = (
    "another tool holds the root cgroup exclusively (bpftool cgroup show /sys/fs/cgroup lists its programs)"
)


def missing_capabilities() -> str | None:
    """Return a text that names the missing capabilities for BPF programs, and says what to do.

    Return None if no capability is missing.
    """
    missing = capabilities.missing_for_programs()
    return f"missing {', '.join(missing)}; run portwatch as root (sudo portwatch)" if missing else None
