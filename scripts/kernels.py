"""Debian's packaged kernels, with their headers: which ones we are tested on, and how to get them.

apt fetches them and checks their signatures, by a configuration of its own: the suites that
hold other kernels never become sources of this machine.
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
_WANTED = ("linux-image-amd64", "linux-headers-amd64")
_PART_OF_A_KERNEL = re.compile(r"linux-(?:image|binary|modules|base|headers)-\d\S*")
"""A kernel was one package until 7.0 in Debian; now its image depends on what holds its parts."""

_IMAGES = ("boot/vmlinuz-*", "lib/modules/*/vmlinuz")
"""Where a package may have its image."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel of Debian's."""

    name: str
    """What KERNEL= calls it."""
    suite: str
    security: bool = False
    """Whether the suite's security archive has later ones."""
    engines: tuple[str, ...] = ("core-fentry", "core-stable", "bcc")
    """What runs there, as tests/support.py names it."""


KERNELS = (
    Kernel("5.10", "bullseye", security=True, engines=("core-stable", "bcc")),
    Kernel("6.1", "bookworm", security=True),
    Kernel("6.12", "trixie", security=True),
    Kernel("newest", "sid"),
)


def named(name: str) -> Kernel:
    """The kernel of that name."""
    for kernel in KERNELS:
        if kernel.name == name:
            return kernel
    sys.exit(f"there is no kernel {name!r} here; KERNEL is one of {', '.join(one.name for one in KERNELS)}")


def image_of(kernel: Kernel) -> Path:
    """Its bootable image, beside its modules; fetched when the cache does not hold it."""
    home = CACHE / kernel.name
    if not (home / "complete").exists():
        _fetch(kernel, home)
    return next(path for place in _IMAGES for path in (home / "root").glob(place))


def release_of(image: Path) -> str:
    """The kernel's release, as uname would say it, by where its image is."""
    return image.parent.name if image.name == "vmlinuz" else image.name.removeprefix("vmlinuz-")


def _fetch(kernel: Kernel, home: Path) -> None:
    packages = home / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    apt = _Apt(home / "apt", kernel)
    apt.run("apt-get", "-qq", "update")
    wanted = sorted(set.union(*map(apt.parts_of, _WANTED)))
    print(f"fetching {', '.join(wanted)}", flush=True)
    apt.run("apt-get", "-qq", "download", *wanted, cwd=packages)
    root = home / "root"
    for package in sorted(packages.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)
        package.unlink()
    modules = next(
        path for path in (root / "lib" / "modules", root / "usr" / "lib" / "modules") if path.is_dir()
    )
    (release,) = (path.name for path in modules.iterdir())
    for link in (modules / release / "build", modules / release / "source"):
        target = link.readlink()
        if target.is_absolute():  # from a root that is not this one
            link.unlink()
            link.symlink_to(os.path.relpath(f"{root}{target}", link.parent))
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")
    subprocess.run(["depmod", "--basedir", root, release], check=True, stderr=subprocess.DEVNULL)
    (home / "complete").touch()


class _Apt:
    """apt with one suite for its only source, and with state and cache of its own."""

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
            'APT::Sandbox::User "root";\n'  # its own user cannot write below a home directory
        )

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """A command of apt's, on our configuration."""
        environment = {**os.environ, "APT_CONFIG": str(self._configuration)}
        result = subprocess.run(
            command, env=environment, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True
        )
        return result.stdout

    def parts_of(self, package: str) -> set[str]:
        """The packages that make up the kernel that `package` leads to."""
        shown = self.run("apt-cache", "depends", "--important", package)
        parts = set(_PART_OF_A_KERNEL.findall(shown)) - {package}
        return parts.union(*(self.parts_of(part) for part in parts))


def _sources(kernel: Kernel) -> Iterator[str]:
    options = f"[arch=amd64 signed-by={KEYRING}]"
    mirrors = _mirrors()
    yield f"deb {options} {mirrors['Debian']} {kernel.suite} main\n"
    if kernel.security:
        yield f"deb {options} {mirrors['Debian-Security']} {kernel.suite}-security main\n"


def _mirrors() -> dict[str, str]:
    """Where this machine itself has Debian's archives from, by their labels."""
    shown = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Origin: Debian"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = dict(line.split(None, 1) for line in sorted(set(shown.splitlines())))
    if not {"Debian", "Debian-Security"} <= found.keys():
        sys.exit("the kernels come from Debian's archives, which apt knows here after: sudo apt-get update")
    return found
