"""Read the list of mounts, and open kernel file systems even if they are not mounted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from portwatch.errors import EngineUnavailable
from portwatch.linux import procfs
from portwatch.linux.libc import syscall

# System call numbers, which are the same on all architectures.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSCONFIG_CMD_CREATE = 6
_CLOEXEC = 1

ROOT_INODE = 1
"""The inode of the cgroup v2 root. The root that a private cgroup namespace shows has another inode."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/PID/mountinfo."""

    root: str
    point: str
    kind: str
    options: str = ""
    """The super block's options, separated by commas."""


_ESCAPED = re.compile(rb"\\([0-7]{3})")
"""An octal escape. The kernel escapes spaces, tabs, newlines and backslashes in this way."""


def mounts(mountinfo: str = "/proc/self/mountinfo") -> Iterator[Mount]:
    """Yield the mounts in a mountinfo file, by default that of this process."""
    with open(mountinfo, "rb") as file:
        for line in file:
            fields = line.rstrip(b"\n").split(b" ")
            kind = fields.index(b"-") + 1
            yield Mount(*map(_unescaped, (fields[3], fields[4], fields[kind], fields[-1])))


def _unescaped(field: bytes) -> str:
    return os.fsdecode(_ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), field))


def detached_mount(kind: str) -> int:
    """Mount a kernel file system outside of all mount namespaces, and return a descriptor. Raise OSError."""
    context = syscall(_FSOPEN, kind.encode(), _CLOEXEC)
    try:
        syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return syscall(_FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)


def open_file_system(kind: str) -> int:
    """Return a descriptor of the root of a kernel file system, even if it is not mounted. Raise OSError."""
    for mount in mounts():
        if mount.kind == kind:
            return os.open(mount.point, os.O_RDONLY | os.O_DIRECTORY)
    return detached_mount(kind)


def open_cgroup_root() -> int:
    """Return a descriptor of the cgroup v2 root, which contains all containers. Raise EngineUnavailable.

    In a private cgroup namespace, the mounted root is the container's own cgroup. BPF programs can be attached
    there, but they would miss every other container.
    """
    has_cgroup2 = False
    for candidate in _cgroup_directories():
        has_cgroup2 = True
        if os.fstat(candidate).st_ino == ROOT_INODE:
            return candidate
        os.close(candidate)
    if not has_cgroup2:
        raise EngineUnavailable("this kernel has no cgroup v2, which BPF programs attach to")
    raise EngineUnavailable(
        "this is a private cgroup namespace: BPF programs attached here would not see other containers; "
        "run the container with the host's cgroup namespace (docker run --cgroupns=host), "
        "with the host's processes (--pid=host), or with the host's /sys/fs/cgroup mounted"
    )


def _cgroup_directories() -> Iterator[int]:
    mounted = [mount.point for mount in mounts() if mount.kind == "cgroup2"]
    host = f"{procfs.root()}/1/root/sys/fs/cgroup"
    for path in (*mounted, host, f"{host}/unified"):
        with suppress(OSError):  # the path is missing or not readable: try the next
            yield os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    with suppress(OSError):
        yield detached_mount("cgroup2")
