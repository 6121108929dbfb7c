"""Which headers bcc compiles against: our own few where BTF tells the rest, else the running kernel's."""

from __future__ import annotations

import os
import re
from pathlib import Path

from portwatch.errors import EngineUnavailable

OWN = Path(__file__).with_name("stand_in")
MODULES = Path("/lib/modules")


def of_running_kernel(modules: Path = MODULES, release: str | None = None) -> Path:
    """The folder of the running kernel's headers; those of any other would read wrong fields in silence."""
    release = release or os.uname().release
    folder = modules / release / "build"
    if not folder.is_dir():
        raise EngineUnavailable(
            f"this kernel has neither BTF nor headers ({folder} is missing): apt-get install "
            f"linux-headers-{release} (Fedora: dnf install kernel-devel-{release})"
        )
    found = _release_of(folder)
    if found != release:
        raise EngineUnavailable(
            f"the headers in {folder} are of {found or 'a kernel that they do not name'}, and {release} runs: "
            f"fields would be read from wrong places; apt-get install linux-headers-{release}"
        )
    return folder


def _release_of(folder: Path) -> str | None:
    try:
        text = (folder / "include/generated/utsrelease.h").read_text("utf-8")
    except OSError:
        pass
    else:
        found = re.search(r'#define UTS_RELEASE "(.+)"', text)
        return found[1] if found else None
    try:
        return (folder / "include/config/kernel.release").read_text("utf-8").strip()
    except OSError:
        return None
