"""The kernel's file systems, also where nobody has mounted them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from portwatch.errors import EngineUnavailable
from portwatch.linux import procfs
from portwatch.linux.libc import syscall

# These numbers are one for all architectures.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSCONFIG_CMD_CREATE = 6
_CLOEXEC = 1

ROOT_INODE = 1
"""The inode of a cgroup v2 tree's true root; of the root that a cgroup namespace shows it is another."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of a mountinfo."""

    root: str
    point: str
    kind: str
    options: str = ""
    """Of the file system itself, between commas."""


_ESCAPED = re.compile(rb"\\([0-7]{3})")
"""How the kernel writes a space, and what else would end a field or a line."""


def mounts(mountinfo: str = "/proc/self/mountinfo") -> Iterator[Mount]:
    """What is mounted where we can see it, or where another process does."""
    with open(mountinfo, "rb") as file:
        for line in file:
            fields = line.rstrip(b"\n").split(b" ")
            kind = fields.index(b"-") + 1
            yield Mount(*map(_unescaped, (fields[3], fields[4], fields[kind], fields[-1])))


def _unescaped(field: bytes) -> str:
    return os.fsdecode(_ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), field))


def detached_mount(kind: str) -> int:
    """A mount of a kernel file system that appears in no namespace, as a directory's descriptor."""
    context = syscall(_FSOPEN, kind.encode(), _CLOEXEC)
    try:
        syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return syscall(_FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)


def open_file_system(kind: str) -> int:
    """The directory of a kernel file system. Raises OSError where it is not to be had."""
    for mount in mounts():
        if mount.kind == kind:
            return os.open(mount.point, os.O_RDONLY | os.O_DIRECTORY)
    return detached_mount(kind)


def open_cgroup_root() -> int:
    """The true root of cgroup v2, over every container, as a directory's descriptor.

    In a cgroup namespace of its own a container is shown its own cgroup as the
    root: attaching there succeeds and misses every neighbour. So the root's inode
    is looked at, and the host's mount is looked for behind its pid 1.
    """
    seen = False
    for candidate in _cgroup_directories():
        seen = True
        if os.fstat(candidate).st_ino == ROOT_INODE:
            return candidate
        os.close(candidate)
    if not seen:
        raise EngineUnavailable("this kernel offers no cgroup v2, to which the programs would be attached")
    raise EngineUnavailable(
        "this is a private cgroup namespace: attached here, nothing of the neighbours would be seen; "
        "run the container with the host's cgroup namespace (docker run --cgroupns=host), "
        "with the host's processes (--pid=host), or with the host's /sys/fs/cgroup mounted"
    )


def _cgroup_directories() -> Iterator[int]:
    mounted = [mount.point for mount in mounts() if mount.kind == "cgroup2"]
    hosts = f"{procfs.root()}/1/root/sys/fs/cgroup"
    for path in (*mounted, hosts, f"{hosts}/unified"):
        # A path that is not there or not ours to see is one way less, not an error.
        with suppress(OSError):
            yield os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    with suppress(OSError):
        yield detached_mount("cgroup2")
