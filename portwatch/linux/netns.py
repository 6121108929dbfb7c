"""Network namespaces: list them, name them, enter them."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from errno import ENOENT
from itertools import chain

from portwatch.linux import procfs
from portwatch.linux.libc import LIBC, checked
from portwatch.linux.mounts import Mount, mounts

CLONE_NEWNET = 0x40000000

_OWN_MOUNTINFO = "/proc/self/mountinfo"

_IP_NETNS_FOLDERS = ("/run/netns", "/var/run/netns")
"""Where `ip netns` mounts namespaces. If a namespace has several names, a name from here is used."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace, and the path of a file that represents it."""

    inode: int
    path: str
    net: str | None
    """The /proc/PID/net directory of a process in the namespace. None if no process is in the namespace."""
    pid: int | None = None
    """The process whose directory in /proc contains `path` and `net`."""


def own() -> Namespace:
    """Return the network namespace of this thread. Other threads may be in other namespaces."""
    return Namespace(_own_inode(), "/proc/thread-self/ns/net", "/proc/thread-self/net")


def all_namespaces() -> list[Namespace]:
    """Return all network namespaces that this thread or a visible process is in, or that are mounted."""
    own_namespace = own()
    namespaces = {own_namespace.inode: own_namespace}
    for pid in procfs.pids():
        try:
            inode = procfs.namespace(pid, "net")
        except procfs.UNREADABLE:
            continue  # the process has ended, or this user may not see it
        if inode not in namespaces:
            folder = f"{procfs.root()}/{pid}"
            namespaces[inode] = Namespace(inode, f"{folder}/ns/net", f"{folder}/net", pid)
    for inode, mount in _mounted():
        namespaces.setdefault(inode, Namespace(inode, mount.point, None))
    return list(namespaces.values())


def name_of(inode: int) -> str | None:
    """Return the name under which `ip netns`, docker or another tool mounted a namespace, or None."""
    return _names.of(inode)


def named(name: str) -> int | None:
    """Return the inode of the namespace with this name, or None."""
    return _names.inode(name)


class _Names:
    """The names of namespaces by inode, read again when the mounts have changed.

    Every lookup of an unknown namespace checks whether the mounts have changed. Lookups of known namespaces
    check at most once per interval, because the check releases the GIL and there is a lookup for every socket.
    """

    _INTERVAL = 0.01

    def __init__(self) -> None:
        self._mountinfo_fd: int | None = None
        self._reset()

    def forget(self) -> None:
        """Reset everything in a forked child.

        A new lock is needed, because a thread that does not exist in the child may have held the old lock. A
        new descriptor is needed, because the parent would miss changes of the mounts if the child polled the
        descriptor that they share.
        """
        if self._mountinfo_fd is not None:
            os.close(self._mountinfo_fd)
        self._reset()

    def _reset(self) -> None:
        self._names: dict[int, str | None] = {}
        """None means that the namespace has no name.

        `_refresh` replaces the whole dict and never changes it in place, so lookups need no lock.
        """
        self._next_refresh = 0.0
        self._lock = threading.Lock()
        """Held during a refresh. Guards `_mountinfo_path` and `_mountinfo_fd`."""
        self._mountinfo_path = ""
        self._mountinfo_fd = None

    def of(self, inode: int) -> str | None:
        if inode not in self._names or time.monotonic() >= self._next_refresh:
            with suppress(OSError):  # it is better to report no name than to fail
                self._refresh()
        return self._names.setdefault(inode, None)

    def inode(self, name: str) -> int | None:
        self._refresh()
        return next((inode for inode, candidate in list(self._names.items()) if candidate == name), None)

    def _refresh(self) -> None:
        with self._lock:
            self._next_refresh = time.monotonic() + self._INTERVAL
            if self._have_mounts_changed():
                names: dict[int, str | None] = {}
                for inode, mount in _mounted():
                    folder, _, name = mount.point.rpartition("/")
                    if inode not in names or folder.endswith(_IP_NETNS_FOLDERS):
                        names[inode] = name
                self._names = names

    def _have_mounts_changed(self) -> bool:
        path = _mountinfo_path()
        if path != self._mountinfo_path:
            if self._mountinfo_fd is not None:
                os.close(self._mountinfo_fd)
            self._mountinfo_fd, self._mountinfo_path = os.open(path, os.O_RDONLY | os.O_CLOEXEC), path
            return True
        poller = select.poll()
        assert self._mountinfo_fd is not None
        poller.register(self._mountinfo_fd, select.POLLPRI)
        return bool(poller.poll(0))


_names = _Names()
os.register_at_fork(after_in_child=_names.forget)


def _mountinfo_path() -> str:
    """Return the path of the mountinfo to read names from.

    If the host's procfs is in use and readable, it is the host's mountinfo, else our own.
    """
    host = f"{procfs.root()}/1/mountinfo"
    return host if procfs.root() != procfs.OWN_ROOT and os.access(host, os.R_OK) else _OWN_MOUNTINFO


def _mounted() -> Iterator[tuple[int, Mount]]:
    """Yield the inode and the mount of each mounted namespace. `point` is a path that this process can open."""
    path = _mountinfo_path()
    for mount in mounts(path):
        if mount.kind == "nsfs" and mount.root.startswith("net:["):
            point = mount.point if path == _OWN_MOUNTINFO else f"{procfs.root()}/1/root{mount.point}"
            yield int(mount.root[len("net:[") : -1]), replace(mount, point=point)


@contextmanager
def entered(namespace: Namespace) -> Iterator[None]:
    """Switch this thread to a network namespace for the duration of the block. Raise OSError if that fails."""
    if namespace.inode == _own_inode():
        yield  # setns needs CAP_SYS_ADMIN even for the current namespace
        return
    previous = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        target = _open(namespace)
        try:
            _setns(target)
        finally:
            os.close(target)
        try:
            yield
        finally:
            _setns(previous)
    finally:
        os.close(previous)


def _open(namespace: Namespace) -> int:
    """Return a descriptor of a namespace. If `path` no longer leads to the namespace, look for another path."""
    for candidate in chain((namespace,), _alternatives(namespace)):
        try:
            fd = os.open(candidate.path, os.O_RDONLY | os.O_CLOEXEC)
        except procfs.GONE:
            continue  # the process whose directory contains the path has ended
        if os.fstat(fd).st_ino == namespace.inode:
            return fd
        os.close(fd)
    raise FileNotFoundError(ENOENT, "the network namespace has ended", namespace.path)


def _alternatives(namespace: Namespace) -> Iterator[Namespace]:
    """Yield the same namespace with other paths. Lazy, because the search reads all of /proc."""
    for candidate in all_namespaces():
        if candidate.inode == namespace.inode:
            yield candidate


def _own_inode() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def _setns(fd: int) -> None:
    checked(LIBC.setns(fd, CLONE_NEWNET))
