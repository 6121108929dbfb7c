"""Read other processes from a procfs: /proc, or the host's procfs if it is mounted into a container.

psutil is not used here, because its import would add 31 ms to the 150 ms that an engine takes to start.
"""

from __future__ import annotations

import os
import re
import stat as modes
from collections.abc import Iterator
from functools import cache
from itertools import islice

from portwatch.errors import NotPermitted, PortwatchError
from portwatch.linux import clock

GONE = (FileNotFoundError, ProcessLookupError)
"""Errors that mean that the process has ended.

open(2) of a file of such a process fails with ENOENT. read(2) of a file that is already open fails with ESRCH.
"""
UNREADABLE = (*GONE, PermissionError)
"""Errors that mean that the process has ended, or that this user may not see it."""

OWN_ROOT = "/proc"
"""The procfs of this process's own pid namespace. `root()` may return another one, such as the host's."""

_SOCKET = re.compile(r"socket:\[(\d+)\]")
_INIT_PID_NAMESPACE = 0xEFFFFFFC
_KTHREADD, _PF_KTHREAD = 2, 0x00200000

_root = OWN_ROOT


def use(path: str) -> None:
    """From now on, read other processes from the procfs at `path`.

    Raise PortwatchError if it is not a procfs, or if it shows a pid namespace that is neither our own nor the
    initial one.
    """
    global _root  # noqa: PLW0603  # one procfs per process, set before anything reads it
    path = os.path.abspath(path)
    try:
        is_procfs = all(modes.S_ISLNK(os.lstat(f"{path}/{name}").st_mode) for name in ("self", "thread-self"))
    except PermissionError:
        raise NotPermitted(f"this user may not read {path}: run portwatch as root") from None
    except OSError:
        is_procfs = False
    if not is_procfs:
        raise PortwatchError(
            f"{path!r} is not a procfs: to show a container the host's processes, start it with "
            "docker run -v /proc:/host/proc:ro and pass --procfs /host/proc"
        )
    if not _has_own_pids(path) and not _has_kernel_pids(path):
        raise PortwatchError(
            f"{path!r} is the procfs of another pid namespace, where the same pids are other processes: mount "
            "the host's procfs (docker run -v /proc:/host/proc:ro), or set neither --procfs nor $HOST_PROC"
        )
    _root = path


def root() -> str:
    """Return the path of the procfs that shows other processes."""
    return _root


def shows_kernel_pids() -> bool:
    """Return True if the procfs in use shows the kernel's pids, which are also the pids that BPF reports."""
    return _has_kernel_pids(_root)


@cache
def _has_kernel_pids(path: str) -> bool:
    """Return True if the procfs at `path` is that of the initial pid namespace."""
    if _has_own_pids(path):
        return os.stat(f"{OWN_ROOT}/self/ns/pid").st_ino == _INIT_PID_NAMESPACE
    try:
        # Only the initial pid namespace has kthreadd.
        with open(f"{path}/{_KTHREADD}/stat", "rb") as file:
            return bool(int(_fields(file.read())[6]) & _PF_KTHREAD)
    except UNREADABLE:
        return False


def _has_own_pids(path: str) -> bool:
    """Return True if the procfs at `path` is that of this process's own pid namespace."""
    try:
        # NSpid has one pid per pid namespace, from the namespace of the procfs down to the namespace of the
        # process. With a single pid, the two namespaces are the same.
        with open(f"{path}/self/status", "rb") as status:
            return any(line.startswith(b"NSpid:") and len(line.split()) == 2 for line in status)
    except UNREADABLE:
        return False


def pids() -> list[int]:
    """Return the pids of all visible processes."""
    return [int(name) for name in os.listdir(_root) if name.isdecimal()]


def read(pid: int, name: str) -> bytes:
    """Return the content of /proc/PID/NAME."""
    with open(f"{_root}/{pid}/{name}", "rb", buffering=0) as file:
        return file.read()


def stat(pid: int) -> tuple[bytes, int, int]:
    """Return the comm, the parent's pid and the start time of a process."""
    content = read(pid, "stat")
    # The comm is in parentheses and may contain any byte, even parentheses.
    comm = content[content.index(b"(") + 1 : content.rindex(b")")]
    fields = _fields(content)
    return comm, int(fields[1]), clock.process_start(int(fields[19]))


def is_zombie(pid: int) -> bool:
    """Return True if all threads of a process have ended and its parent has not yet waited for it."""
    fields = _fields(read(pid, "stat"))
    return fields[0] in (b"Z", b"X") and int(fields[17]) <= 1


def ancestors_of(pid: int, start_time: int | None) -> Iterator[tuple[int, bytes, int]]:
    """Yield the pid, comm and start time of a process, then of each ancestor, nearest first.

    Yield nothing if the process did not start at `start_time`. Stop at the first ancestor that cannot be read.
    """
    child_start = None
    try:
        while pid:
            comm, parent, start = stat(pid)
            # A parent may end during this loop, and another process may get its pid. That process is younger
            # than the child, so it is not the parent.
            is_reused = start != start_time if child_start is None else start > child_start
            if is_reused:
                return
            yield pid, comm, start
            pid, child_start = parent, start
    except UNREADABLE:
        return  # all further ancestors are unknown


def own_start(pid: int | str = "self") -> int:
    """Return the start time of a process, by default of this one. `pid` is a pid of our own pid namespace."""
    with open(f"{OWN_ROOT}/{pid}/stat", "rb") as file:
        return clock.process_start(int(_fields(file.read())[19]))


def uid_and_ns_pid(pid: int) -> tuple[int | None, int | None]:
    """Return the real uid of a process, and its pid in its own pid namespace."""
    uid = ns_pid = None
    for line in read(pid, "status").splitlines():
        if line.startswith(b"Uid:"):
            uid = int(line.split()[1])
        elif line.startswith(b"NSpid:"):
            ns_pid = int(line.split()[-1])
    return uid, ns_pid


def socket_inodes(pid: int, most: int | None = None) -> Iterator[int]:
    """Yield the inode for each descriptor that is a socket. Examine at most `most` descriptors."""
    with os.scandir(f"{_root}/{pid}/fd") as fds:
        for fd in islice(fds, most):
            try:
                match = _SOCKET.match(os.readlink(fd.path))
            except GONE:
                continue  # the descriptor was closed meanwhile
            if match:
                yield int(match[1])


def namespace(pid: int, kind: str) -> int:
    """Return the inode of a namespace of a process. `kind` is a name in /proc/PID/ns."""
    return os.stat(f"{_root}/{pid}/ns/{kind}").st_ino


def thread_group(pid: int) -> int:
    """Return the pid of the process that a thread belongs to."""
    for line in read(pid, "status").splitlines():
        if line.startswith(b"Tgid:"):
            return int(line.split()[1])
    raise ValueError(f"{_root}/{pid}/status has no Tgid")


def shows_signal_pids(*, kernels: bool) -> bool:
    """Return True if kill(2) in this process takes pids of the given kind.

    They are the kernel's pids if `kernels` is set, else the pids that the procfs in use shows.
    """
    return _has_own_pids(OWN_ROOT) and _has_kernel_pids(OWN_ROOT) if kernels else _has_own_pids(_root)


def require_kernel_pids() -> None:
    """Raise PortwatchError unless the procfs in use shows the kernel's pids."""
    if not shows_kernel_pids():
        raise PortwatchError(
            "process trees cannot be watched from a private pid namespace, where pids differ from those that "
            "BPF reports: use the host's pid namespace (docker run --pid=host; in Kubernetes hostPID: true)"
        )


def _fields(content: bytes) -> list[bytes]:
    """Return the fields of /proc/PID/stat that follow the comm. The first is the state."""
    return content[content.rindex(b")") + 2 :].split()
