"""Network namespaces: which there are, what they are called, and how one is entered."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from errno import ENOENT

from portwatch.linux import procfs
from portwatch.linux.libc import LIBC, checked
from portwatch.linux.mounts import Mount, mounts

CLONE_NEWNET = 0x40000000

_FOLDERS = ("/run/netns", "/var/run/netns")
"""Where `ip netns` keeps names: these come before any other's."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace, and a path that leads to it."""

    inode: int
    path: str
    net: str | None
    """The /proc/PID/net of a process in it; None where only a mount keeps it."""
    pid: int | None = None
    """That process."""


def own() -> Namespace:
    """The network namespace that this thread is in: another may be looking into others."""
    return Namespace(_inode("thread-self"), "/proc/thread-self/ns/net", "/proc/thread-self/net")


def all_namespaces() -> list[Namespace]:
    """Our own network namespace and every other that a process or a mount shows us."""
    here = own()
    found = {here.inode: here}
    for pid in procfs.pids():
        try:
            inode = procfs.namespace(pid, "net")
        except procfs.UNREADABLE:
            continue
        if inode not in found:
            folder = f"{procfs.root()}/{pid}"
            found[inode] = Namespace(inode, f"{folder}/ns/net", f"{folder}/net", pid)
    for inode, mount in _mounted():
        found.setdefault(inode, Namespace(inode, mount.point, None))
    return list(found.values())


def name_of(inode: int) -> str | None:
    """What `ip netns`, docker or whoever keeps a namespace by a mount calls it."""
    return _names.of(inode)


def named(name: str) -> int | None:
    """The inode of the namespace of that name."""
    return _names.inode(name)


class _Names:
    """The names of namespaces, read anew when the kernel says that mounts have changed.

    It is asked for each namespace that comes up for the first time, and else every few
    milliseconds, not for every socket: asking gives up the interpreter's lock.
    """

    _INTERVAL = 0.01

    def __init__(self) -> None:
        self._mountinfo: int | None = None
        self._file = ""
        self._names: dict[int, str | None] = {}
        self._due = 0.0
        self._refreshing = threading.Lock()

    def of(self, inode: int) -> str | None:
        if inode not in self._names or time.monotonic() >= self._due:
            with suppress(OSError):  # names that we are not let see are no reason to see nothing
                self._refresh()
        return self._names.setdefault(inode, None)

    def inode(self, name: str) -> int | None:
        self._refresh()
        return next((inode for inode, known in self._names.items() if known == name), None)

    def _refresh(self) -> None:
        with self._refreshing:
            self._due = time.monotonic() + self._INTERVAL
            if self._has_changed():
                names: dict[int, str | None] = {}
                for inode, mount in _mounted():
                    folder, _, name = mount.point.rpartition("/")
                    if inode not in names or folder.endswith(_FOLDERS):
                        names[inode] = name
                self._names = names

    def _has_changed(self) -> bool:
        file = _mountinfo()
        if file != self._file:
            if self._mountinfo is not None:
                os.close(self._mountinfo)
            self._mountinfo, self._file = os.open(file, os.O_RDONLY | os.O_CLOEXEC), file
            return True
        poller = select.poll()
        assert self._mountinfo is not None
        poller.register(self._mountinfo, select.POLLPRI)
        return bool(poller.poll(0))


_names = _Names()


def _mountinfo() -> str:
    """The mounts in which namespaces have their names: with a procfs of the host's, the host's."""
    hosts = f"{procfs.root()}/1/mountinfo"
    return hosts if procfs.root() != procfs.OURS and os.access(hosts, os.R_OK) else "/proc/self/mountinfo"


def _mounted() -> Iterator[tuple[int, Mount]]:
    """The inode of each namespace that a mount keeps, and that mount by a path that leads there from here."""
    file = _mountinfo()
    for mount in mounts(file):
        if mount.kind == "nsfs" and mount.root.startswith("net:["):
            point = mount.point if file == "/proc/self/mountinfo" else f"{procfs.root()}/1/root{mount.point}"
            yield int(mount.root[len("net:[") : -1]), replace(mount, point=point)


@contextmanager
def entered(namespace: Namespace) -> Iterator[None]:
    """Puts this thread, and no other, into a network namespace for a while. Raises OSError."""
    if namespace.inode == _inode("thread-self"):
        yield  # to enter even this one would take CAP_SYS_ADMIN
        return
    back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = _open(namespace)
        try:
            _setns(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _setns(back)
    finally:
        os.close(back)


def _open(namespace: Namespace) -> int:
    """A descriptor of it. The process that led to it may have ended, and others be in it still."""
    for candidate in (namespace, *_others_to(namespace)):
        try:
            fd = os.open(candidate.path, os.O_RDONLY | os.O_CLOEXEC)
        except procfs.GONE:
            continue
        if os.fstat(fd).st_ino == namespace.inode:
            return fd
        os.close(fd)
    raise FileNotFoundError(ENOENT, "the network namespace has ended", namespace.path)


def _others_to(namespace: Namespace) -> Iterator[Namespace]:
    for candidate in all_namespaces():
        if candidate.inode == namespace.inode:
            yield candidate


def _inode(who: str) -> int:
    return os.stat(f"/proc/{who}/ns/net").st_ino


def _setns(fd: int) -> None:
    checked(LIBC.setns(fd, CLONE_NEWNET))
