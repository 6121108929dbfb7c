"""Which headers bcc compiles against: our own few where BTF tells the rest, else the running kernel's."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from portwatch.errors import EngineUnavailable

MODULES = Path("/lib/modules")
_FIRST = "include/linux/kconfig.h"
"""What bcc includes before anything else."""
_GENERATED = ("include", "include/generated/uapi", "arch/*/include/generated", "arch/*/include/generated/uapi")


@dataclass(frozen=True, slots=True)
class Headers:
    """Headers of a kernel, of which a distribution may keep those that its build made in another folder."""

    source: Path
    build: Path

    @property
    def flags(self) -> list[str]:
        """What tells the compiler of the second folder: bcc knows of one."""
        if self.build == self.source:
            return []
        return [f"-I{folder}" for part in _GENERATED for folder in self.build.glob(part)]


_STAND_IN = Path(__file__).with_name("minimal_headers")
OWN = Headers(_STAND_IN, _STAND_IN)


def of_running_kernel(modules: Path = MODULES, release: str | None = None) -> Headers:
    """The running kernel's headers; those of any other would read wrong fields in silence."""
    release = release or os.uname().release
    build = modules / release / "build"
    package = f"linux-headers-{release} (Fedora: dnf install kernel-devel-{release})"
    if not build.is_dir():
        raise EngineUnavailable(
            f"this kernel has neither BTF nor headers ({build} is missing): apt-get install {package}"
        )
    found = _release_of(build)
    if found != release:
        raise EngineUnavailable(
            f"the headers in {build} are of {found or 'a kernel that they do not name'}, and {release} runs: "
            f"fields would be read from wrong places; apt-get install {package}"
        )
    for source in (build, modules / release / "source"):
        if (source / _FIRST).is_file():
            return Headers(source, build)
    raise EngineUnavailable(
        f"the headers in {build} are not whole ({_FIRST} is missing): apt-get install --reinstall {package}"
    )


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
