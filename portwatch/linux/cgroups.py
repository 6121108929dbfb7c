"""Cgroups, by the id that a record carries and by the path that a person types."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache

from portwatch.errors import EngineUnavailable, NotPermitted, PortwatchError
from portwatch.linux import mounts
from portwatch.linux.libc import LIBC, checked

_FILEID_KERNFS = 0xFE
_HANDLE = struct.Struct("=IiQ")
_INIT_NAMESPACE = 0xEFFFFFFB


def path_of(cgroup_id: int) -> str | None:
    """Where the v2 cgroup of an id is, from the true root; None if it has gone or is not ours to see."""
    try:
        return _path_of(cgroup_id)
    except (OSError, EngineUnavailable):
        return None


@lru_cache(maxsize=4096)
def _path_of(cgroup_id: int) -> str:
    """An id is never given to another cgroup, so what was found once stays true; what was not, need not."""
    with _true_root() as root:
        handle = _HANDLE.pack(8, _FILEID_KERNFS, cgroup_id)
        # It may have gone, or CAP_DAC_READ_SEARCH is missing, or the kernel is older than 5.5.
        cgroup = checked(LIBC.open_by_handle_at(root, handle, os.O_RDONLY | os.O_CLOEXEC))
        try:
            return os.readlink(f"/proc/self/fd/{cgroup}").removeprefix(_where(root)) or "/"
        finally:
            os.close(cgroup)


def find(text: str) -> str:
    """The cgroup that a path means, with or without where it is mounted. Raises PortwatchError."""
    if not text:
        raise PortwatchError("a cgroup's path is needed, such as /system.slice")
    path = os.path.normpath("/" + text.lstrip("/"))
    mounted = [mount for mount in mounts.mounts() if mount.kind in ("cgroup", "cgroup2")]
    above = [mount for mount in mounted if f"{path}/".startswith(f"{mount.point}/")]
    if above:
        mounted = [max(above, key=lambda mount: len(mount.point))]
        path = path.removeprefix(mounted[0].point) or "/"
    for mount in mounted:
        try:
            inode = os.stat(f"{mount.point}{path}/.").st_ino
        except OSError:
            continue
        found = path_of(inode) if mount.kind == "cgroup2" else None
        if found or not is_namespaced():
            return found or path
    if not above and _is_below_the_true_root(path):
        return path
    if is_namespaced():
        raise NotPermitted(
            f"{text!r} cannot be found from within a private cgroup namespace: run the container with the "
            "host's (docker run --cgroupns=host --pid=host --privileged)"
        )
    raise PortwatchError(
        f"there is no cgroup {text!r}, or no more (systemd-cgls lists all, /proc/PID/cgroup has a process' own)"
    )


@cache
def is_namespaced() -> bool:
    """Whether /proc shows us cgroups not from the true root on, but from a container's."""
    try:
        return os.stat("/proc/self/ns/cgroup").st_ino != _INIT_NAMESPACE
    except OSError:
        return False  # a kernel without these namespaces


@cache
def is_v2_only() -> bool:
    """Whether no hierarchy of v1 says anything that v2 does not."""
    with open("/proc/self/cgroup", encoding="utf-8", errors="backslashreplace") as file:
        return all(line.startswith("0::") for line in file)


def _is_below_the_true_root(path: str) -> bool:
    try:
        with _true_root() as root:
            return os.path.isdir(f"/proc/self/fd/{root}{path}")
    except (OSError, EngineUnavailable):
        return False


@contextmanager
def _true_root() -> Iterator[int]:
    found = mounts.open_cgroup_root()
    try:
        # A detached mount's own descriptor does not serve to open by handle.
        root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=found)
    finally:
        os.close(found)
    try:
        yield root
    finally:
        os.close(root)


def _where(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}").rstrip("/")
