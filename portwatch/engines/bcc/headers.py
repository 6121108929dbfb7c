"""The headers that bcc compiles with.

If the kernel has BTF, these are our own minimal headers. Otherwise, they are the headers of the running kernel.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from portwatch.errors import EngineUnavailable

MODULES = Path("/lib/modules")
_FIRST = "include/linux/kconfig.h"
"""The file that bcc includes first."""
_GENERATED = ("include", "include/generated/uapi", "arch/*/include/generated", "arch/*/include/generated/uapi")


@dataclass(frozen=True, slots=True)
class Headers:
    """The headers of a kernel. Some distributions keep the generated headers in a second folder, `build`."""

    source: Path
    build: Path

    @property
    def flags(self) -> list[str]:
        """The compiler flags for the folder `build`. bcc itself adds the flags for `source`."""
        if self.build == self.source:
            return []
        return [f"-I{folder}" for part in _GENERATED for folder in self.build.glob(part)]


_MINIMAL_FOLDER = Path(__file__).with_name("minimal_headers")
MINIMAL = Headers(_MINIMAL_FOLDER, _MINIMAL_FOLDER)


def of_running_kernel(modules: Path = MODULES, release: str | None = None) -> Headers:
    """Return the headers of the running kernel.

    Raise EngineUnavailable if they are missing, incomplete, or for another kernel. With the headers of another
    kernel, the programs would read wrong fields without any error.
    """
    release = release or os.uname().release
    build = modules / release / "build"
    package = f"linux-headers-{release} (Fedora: dnf install kernel-devel-{release})"
    if not build.is_dir():
        raise EngineUnavailable(
            f"this kernel has neither BTF nor headers ({build} is missing): apt-get install {package}"
        )
    headers_release = _release_of(build)
    if headers_release != release:
        raise EngineUnavailable(
            f"the headers in {build} are for {headers_release or 'an unknown kernel'}, but {release} is "
            f"running: programs would read wrong fields; apt-get install {package}"
        )
    for source in (build, modules / release / "source"):
        if (source / _FIRST).is_file():
            return Headers(source, build)
    raise EngineUnavailable(
        f"the headers in {build} are incomplete ({_FIRST} is missing): apt-get install --reinstall {package}"
    )


def _release_of(folder: Path) -> str | None:
    try:
        text = (folder / "include/generated/utsrelease.h").read_text("utf-8")
    except OSError:
        pass
    else:
        release = re.search(r'#define UTS_RELEASE "(.+)"', text)
        return release[1] if release else None
    try:
        return (folder / "include/config/kernel.release").read_text("utf-8").strip()
    except OSError:
        return None
