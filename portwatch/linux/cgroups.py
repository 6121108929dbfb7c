"""Find cgroups by id (BPF records contain ids) and by path (options contain paths)."""

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
    """Return the path of a v2 cgroup from the root of the hierarchy.

    The path is the same inside and outside of a private cgroup namespace. None means that the cgroup was
    removed, or that this process may not look it up.
    """
    try:
        return _path_of(cgroup_id)
    except (OSError, EngineUnavailable):
        return None


@lru_cache(maxsize=4096)
def _path_of(cgroup_id: int) -> str:
    # A path can be cached, because ids are not reused and cgroups do not move. Failures are not cached, because
    # lru_cache does not store exceptions.
    with _hierarchy_root() as root:
        handle = _HANDLE.pack(8, _FILEID_KERNFS, cgroup_id)
        # This fails if the cgroup was removed, if CAP_DAC_READ_SEARCH is missing, and on kernels before 5.5.
        cgroup = checked(LIBC.open_by_handle_at(root, handle, os.O_RDONLY | os.O_CLOEXEC))
        try:
            return _path_of_fd(cgroup).removeprefix(_path_of_fd(root)) or "/"
        finally:
            os.close(cgroup)


def find(text: str) -> str:
    """Return the path of an existing cgroup from the root of the hierarchy. `text` may include the mount point.

    Raise PortwatchError if there is no such cgroup. Raise NotPermitted if a private cgroup namespace may hide
    the cgroup.
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
    if not containing and _is_below_hierarchy_root(path):
        return path
    if is_namespaced():
        raise NotPermitted(
            f"cgroup {text!r} cannot be seen from a private cgroup namespace: run the container in the "
            "host's cgroup namespace (docker run --cgroupns=host --pid=host --privileged)"
        )
    raise PortwatchError(
        f"there is no cgroup {text!r}, or it was removed: systemd-cgls lists all cgroups, "
        "/proc/PID/cgroup shows the cgroup of a process"
    )


@cache
def is_namespaced() -> bool:
    """Return True if this process is in a private cgroup namespace.

    The cgroup paths that it reads from /proc are then relative to the root of that namespace.
    """
    try:
        return os.stat("/proc/self/ns/cgroup").st_ino != _INIT_NAMESPACE
    except OSError:
        return False  # a kernel without cgroup namespaces


@cache
def is_v2_only() -> bool:
    """Return True if no v1 hierarchy is in use. A process then has one cgroup, whose path is a v2 path."""
    with open("/proc/self/cgroup", encoding="utf-8", errors="backslashreplace") as file:
        return all(line.startswith("0::") for line in file)


def _is_below_hierarchy_root(path: str) -> bool:
    try:
        with _hierarchy_root() as root:
            return os.path.isdir(f"/proc/self/fd/{root}{path}")
    except (OSError, EngineUnavailable):
        return False


@contextmanager
def _hierarchy_root() -> Iterator[int]:
    mount = mounts.open_cgroup_root()
    try:
        # open_by_handle_at does not accept the descriptor of a detached mount, so open its root directory.
        root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    finally:
        os.close(mount)
    try:
        yield root
    finally:
        os.close(root)


def _path_of_fd(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}").rstrip("/")
