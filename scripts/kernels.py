"""The Debian kernels that the tests run on. This module fetches them, with their headers.

apt downloads the packages and verifies their signatures. It uses a separate configuration, so that the suites
that contain these kernels never become package sources of this machine.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "portwatch" / "kernels"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_METAPACKAGES = ("linux-image-amd64", "linux-headers-amd64")
_PART_OF_A_KERNEL = re.compile(r"linux-(?:image|binary|modules|base|headers)-\d\S*")
"""The packages that together contain a kernel.

Before 7.0, linux-image-* contains the whole kernel. Since 7.0, it depends on packages that contain the parts.
"""
_IMAGES = ("boot/vmlinuz-*", "lib/modules/*/vmlinuz")
"""The paths at which the packages install the bootable image."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel in a Debian suite."""

    name: str
    """The value of KERNEL= that selects this kernel."""
    suite: str
    security: bool = False
    """True if the suite has a security archive, which may have a newer kernel."""
    engines: tuple[str, ...] = ("core-fentry", "core-stable", "bcc")
    """The engines to test, as in PORTWATCH_TEST_ENGINES."""


KERNELS = (
    Kernel("5.10", "bullseye", security=True, engines=("core-stable", "bcc")),
    Kernel("6.1", "bookworm", security=True),
    Kernel("6.12", "trixie", security=True),
    Kernel("newest", "sid"),
)


def named(name: str) -> Kernel:
    """Return the kernel with this name. Exit with an error if there is none."""
    for kernel in KERNELS:
        if kernel.name == name:
            return kernel
    sys.exit(f"unknown kernel {name!r}; KERNEL is one of {', '.join(kernel.name for kernel in KERNELS)}")


def image_of(kernel: Kernel) -> Path:
    """Return the path of a kernel's bootable image. Fetch the kernel if it is not in the cache.

    The modules are in the same directory tree.
    """
    home = CACHE / kernel.name
    if not (home / "complete").exists():
        _fetch(kernel, home)
    return next(path for place in _IMAGES for path in (home / "root").glob(place))


def release_of(image: Path) -> str:
    """Return the kernel's release, as `uname -r` prints it, from the path of its image."""
    return image.parent.name if image.name == "vmlinuz" else image.name.removeprefix("vmlinuz-")


def _fetch(kernel: Kernel, home: Path) -> None:
    packages = home / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    apt = _Apt(home / "apt", kernel)
    apt.run("apt-get", "-qq", "update")
    names = sorted(set.union(*map(apt.parts_of, _METAPACKAGES)))
    print(f"fetching {', '.join(names)}", flush=True)
    apt.run("apt-get", "-qq", "download", *names, cwd=packages)
    root = home / "root"
    for package in sorted(packages.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)
        package.unlink()
    _finish_modules(root)
    (home / "complete").touch()


def _finish_modules(root: Path) -> None:
    """Make the unpacked modules usable: correct the links to the headers, create /lib, and run depmod."""
    modules = next(
        path for path in (root / "lib" / "modules", root / "usr" / "lib" / "modules") if path.is_dir()
    )
    (release,) = (path.name for path in modules.iterdir())
    for link in (modules / release / "build", modules / release / "source"):
        target = link.readlink()
        if target.is_absolute():  # an absolute target means a path below the unpacked root
            link.unlink()
            link.symlink_to(os.path.relpath(f"{root}{target}", link.parent))
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")
    subprocess.run(["depmod", "--basedir", root, release], check=True, stderr=subprocess.DEVNULL)


class _Apt:
    """Runs apt with its own state and cache, and with the kernel's suite as the only package source."""

    def __init__(self, home: Path, kernel: Kernel) -> None:
        for part in ("parts", "state/lists/partial", "cache/archives/partial"):
            (home / part).mkdir(parents=True, exist_ok=True)
        (home / "status").touch()
        (home / "sources.list").write_text("".join(_sources(kernel)))
        self._configuration = home / "apt.conf"
        self._configuration.write_text(
            f'Dir::Etc::sourcelist "{home}/sources.list";\n'
            f'Dir::Etc::sourceparts "{home}/parts";\n'
            f'Dir::State "{home}/state";\n'
            f'Dir::State::status "{home}/status";\n'
            f'Dir::Cache "{home}/cache";\n'
            'APT::Sandbox::User "root";\n'  # the default user _apt cannot write below a home directory
        )

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """Run a command such as apt-get with this configuration and return its output."""
        environment = {**os.environ, "APT_CONFIG": str(self._configuration)}
        result = subprocess.run(
            command, env=environment, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True
        )
        return result.stdout

    def parts_of(self, package: str) -> set[str]:
        """Return the names of the packages that make up the kernel that `package` depends on."""
        dependencies = self.run("apt-cache", "depends", "--important", package)
        parts = set(_PART_OF_A_KERNEL.findall(dependencies)) - {package}
        return parts.union(*(self.parts_of(part) for part in parts))


def _sources(kernel: Kernel) -> Iterator[str]:
    """Yield the lines of a sources.list for the kernel's suite."""
    options = f"[arch=amd64 signed-by={KEYRING}]"
    mirrors = _mirrors()
    yield f"deb {options} {mirrors['Debian']} {kernel.suite} main\n"
    if kernel.security:
        yield f"deb {options} {mirrors['Debian-Security']} {kernel.suite}-security main\n"


def _mirrors() -> dict[str, str]:
    """Return {label: URI} of the Debian archives that this machine uses."""
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Origin: Debian"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    mirrors = dict(line.split(None, 1) for line in sorted(set(targets.splitlines())))
    if not {"Debian", "Debian-Security"} <= mirrors.keys():
        sys.exit("apt has no index of the Debian archives that contain the kernels; run: sudo apt-get update")
    return mirrors
