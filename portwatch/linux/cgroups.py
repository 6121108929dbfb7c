"""Lookup of cgroups, by id (as in records) and by path (as in options)."""

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
    """Return the path of a v2 cgroup from the true root. None if it is gone or this process may not look."""
    try:
        return _path_of(cgroup_id)
    except (OSError, EngineUnavailable):
        return None


@lru_cache(maxsize=4096)
def _path_of(cgroup_id: int) -> str:
    # Ids are not reused and cgroups do not move, so a path can be cached. Failures are raised, so not cached.
    with _true_root() as root:
        handle = _HANDLE.pack(8, _FILEID_KERNFS, cgroup_id)
        # Fails if the cgroup is gone, without CAP_DAC_READ_SEARCH, and on kernels before 5.5.
        cgroup = checked(LIBC.open_by_handle_at(root, handle, os.O_RDONLY | os.O_CLOEXEC))
        try:
            return _path_of_fd(cgroup).removeprefix(_path_of_fd(root)) or "/"
        finally:
            os.close(cgroup)


def find(text: str) -> str:
    """Return the path of an existing cgroup from the root. `text` may include the mount point.

    Raise PortwatchError if there is no such cgroup, or if it cannot be seen from here.
    """
    if not text:
        raise PortwatchError("the path of the cgroup is empty: try /system.slice")
    path = os.path.normpath("/" + text.lstrip("/"))
    hierarchies = [mount for mount in mounts.mounts() if mount.kind in ("cgroup", "cgroup2")]
    containing = [mount for mount in hierarchies if f"{path}/".startswith(f"{mount.point}/")]
    if containing:
        hierarchies = [max(containing, key=lambda mount: len(mount.point))]
        path = path.removeprefix(hierarchies[0].point) or "/"
    for mount in hierarchies:
        try:
            inode = os.stat(f"{mount.point}{path}/.").st_ino
        except OSError:
            continue
        path_from_root = path_of(inode) if mount.kind == "cgroup2" else None
        if path_from_root or not is_namespaced():
            return path_from_root or path
    if not containing and _is_below_true_root(path):
        return path
    if is_namespaced():
        raise NotPermitted(
            f"cgroup {text!r} cannot be seen from a private cgroup namespace: run the container in the host's "
            "(docker run --cgroupns=host --pid=host --privileged)"
        )
    raise PortwatchError(
        f"there is no cgroup {text!r}, or it was removed: systemd-cgls lists all cgroups, "
        "/proc/PID/cgroup has that of a process"
    )


@cache
def is_namespaced() -> bool:
    """Return True if this process is in a private cgroup namespace: paths in /proc start at its root."""
    try:
        return os.stat("/proc/self/ns/cgroup").st_ino != _INIT_NAMESPACE
    except OSError:
        return False  # a kernel without cgroup namespaces


@cache
def is_v2_only() -> bool:
    """Return True if no v1 hierarchy is in use, so that a v2 path is all there is."""
    with open("/proc/self/cgroup", encoding="utf-8", errors="backslashreplace") as file:
        return all(line.startswith("0::") for line in file)


def _is_below_true_root(path: str) -> bool:
    try:
        with _true_root() as root:
            return os.path.isdir(f"/proc/self/fd/{root}{path}")
    except (OSError, EngineUnavailable):
        return False


@contextmanager
def _true_root() -> Iterator[int]:
    mount = mounts.open_cgroup_root()
    try:
        # open_by_handle_at does not accept the descriptor of a detached mount itself.
        root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    finally:
        os.close(mount)
    try:
        yield root
    finally:
        os.close(root)


def _path_of_fd(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}").rstrip("/")
