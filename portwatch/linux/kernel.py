"""The running kernel: release, BTF and lockdown mode."""

from __future__ import annotations

import os
import re
from pathlib import Path

from portwatch.linux import mounts

RELEASE = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
"""Major and minor version, such as (6, 1). Used only for features that neither BTF nor a trial can show."""
VMLINUX = Path("/sys/kernel/btf/vmlinux")
"""The file with the kernel's BTF (type information)."""

CONFIDENTIALITY = "confidentiality"
"""The lockdown mode in which BPF programs may not read kernel memory."""
LOCKDOWN_HELP = "boot with lockdown=integrity, or go without BPF (--engine poll)"


def lockdown() -> str | None:
    """Return the lockdown mode: none, integrity or confidentiality. None if it cannot be read."""
    try:
        directory = mounts.open_file_system("securityfs")
    except OSError:
        return None
    try:
        file = os.open("lockdown", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return "none"  # a kernel built without lockdown
    except OSError:
        return None
    finally:
        os.close(directory)
    with open(file, encoding="ascii") as modes:
        return modes.read().partition("[")[2].partition("]")[0]
