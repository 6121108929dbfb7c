"""The running kernel: its release, where it describes its types, and what it forbids even to root."""

from __future__ import annotations

import os
import re
from pathlib import Path

from portwatch.linux import mounts

RELEASE = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
"""Such as (6, 1), for what neither BTF nor trying tells."""
VMLINUX = Path("/sys/kernel/btf/vmlinux")
"""Its BTF."""

CONFIDENTIALITY = "confidentiality"
"""The mode of lockdown in which programs may not read the kernel's memory."""
LOCKDOWN_HELP = "boot with lockdown=integrity, or go without BPF (--engine poll)"


def lockdown() -> str | None:
    """The mode that it is in: none, integrity or confidentiality; None where that cannot be known."""
    try:
        directory = mounts.open_file_system("securityfs")
    except OSError:
        return None
    try:
        file = os.open("lockdown", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return "none"  # it was built without
    except OSError:
        return None
    finally:
        os.close(directory)
    with open(file, encoding="ascii") as modes:
        return modes.read().partition("[")[2].partition("]")[0]
