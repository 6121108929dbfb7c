"""Other processes, as a procfs shows them: /proc, or the host's where a container has that mounted.

By hand where psutil would do: its import alone takes 31 ms of the 150 in which
the engine is ready, and its Process takes five reads for what two hold.
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

# What /proc answers for a process that has ended, at whichever step of a read it did.
GONE = (FileNotFoundError, ProcessLookupError)
UNREADABLE = (*GONE, PermissionError)

OURS = "/proc"
"""What is about ourselves is read here, whatever is in use for the others."""

_SOCKET = re.compile(r"socket:\[(\d+)\]")
_INIT_PID_NAMESPACE = 0xEFFFFFFC
_KTHREADD, _PF_KTHREAD = 2, 0x00200000

_root = OURS


def use(path: str) -> None:
    """Reads other processes at `path` from here on. Raises PortwatchError if that would name wrong ones."""
    global _root  # noqa: PLW0603  # one for all that is read, and set before anything is
    path = os.path.abspath(path)
    try:
        is_procfs = all(modes.S_ISLNK(os.lstat(f"{path}/{name}").st_mode) for name in ("self", "thread-self"))
    except PermissionError:
        raise NotPermitted(f"{path} is not ours to read as a procfs: run it as root") from None
    except OSError:
        is_procfs = False
    if not is_procfs:
        raise PortwatchError(
            f"{path!r} is no procfs: give a container the host's by docker run -v /proc:/host/proc:ro, "
            "and say --procfs /host/proc"
        )
    if not _has_our_pids(path) and not _has_kernels_pids(path):
        raise PortwatchError(
            f"{path!r} is the procfs of another pid namespace, in which pids mean other processes: "
            "give the host's (docker run -v /proc:/host/proc:ro), or none"
        )
    _root = path


def root() -> str:
    """The procfs in use."""
    return _root


def shows_kernel_pids() -> bool:
    """Whether a process has here the pid by which the kernel itself, and so BPF, knows it."""
    return _has_kernels_pids(_root)


@cache
def _has_kernels_pids(path: str) -> bool:
    if _has_our_pids(path):
        return os.stat(f"{OURS}/self/ns/pid").st_ino == _INIT_PID_NAMESPACE
    try:
        with open(f"{path}/{_KTHREADD}/stat", "rb") as file:
            return bool(int(_fields(file.read())[6]) & _PF_KTHREAD)
    except UNREADABLE:
        return False


def _has_our_pids(path: str) -> bool:
    """A procfs shows the pid of a process in each pid namespace from its own on, down to the process'."""
    try:
        with open(f"{path}/self/status", "rb") as status:
            return any(line.startswith(b"NSpid:") and len(line.split()) == 2 for line in status)
    except UNREADABLE:
        return False


def pids() -> list[int]:
    """Every process that is shown to us."""
    return [int(name) for name in os.listdir(_root) if name.isdecimal()]


def read(pid: int, name: str) -> bytes:
    """The content of /proc/PID/name."""
    with open(f"{_root}/{pid}/{name}", "rb", buffering=0) as file:
        return file.read()


def stat(pid: int) -> tuple[bytes, int, int]:
    """The comm of a process, its parent, and its start."""
    content = read(pid, "stat")
    # The comm is in parentheses and may hold any byte, parentheses too.
    comm = content[content.index(b"(") + 1 : content.rindex(b")")]
    fields = _fields(content)
    return comm, int(fields[1]), clock.process_start(int(fields[19]))


def is_zombie(pid: int) -> bool:
    """Whether a process has ended, with all its threads, and its parent was not told of it yet."""
    fields = _fields(read(pid, "stat"))
    return fields[0] in (b"Z", b"X") and int(fields[17]) <= 1


def ancestors_of(pid: int, start_time: int | None) -> Iterator[tuple[int, bytes, int]]:
    """Pid, comm and start of a process and of its ancestors, as far as the line can be followed up."""
    born = None
    try:
        while pid:
            comm, parent, start = stat(pid)
            # A parent may end while we go up, and its pid be another's: who is younger than his child.
            if start != start_time if born is None else start > born:
                return
            yield pid, comm, start
            pid, born = parent, start
    except UNREADABLE:
        return  # what was found so far is true


def own_start(pid: int | str = "self") -> int:
    """The start of who has that pid for us, whatever procfs is in use; else our own."""
    with open(f"{OURS}/{pid}/stat", "rb") as file:
        return clock.process_start(int(_fields(file.read())[19]))


def uid_and_ns_pid(pid: int) -> tuple[int | None, int | None]:
    """The real uid of a process, and its pid in its own namespace."""
    uid = ns_pid = None
    for line in read(pid, "status").splitlines():
        if line.startswith(b"Uid:"):
            uid = int(line.split()[1])
        elif line.startswith(b"NSpid:"):
            ns_pid = int(line.split()[-1])
    return uid, ns_pid


def socket_inodes(pid: int, most: int | None = None) -> Iterator[int]:
    """The inodes of the sockets that a process has open, once for each fd: of the first ones, if not of all."""
    with os.scandir(f"{_root}/{pid}/fd") as fds:
        for fd in islice(fds, most):
            try:
                match = _SOCKET.match(os.readlink(fd.path))
            except GONE:
                continue
            if match:
                yield int(match[1])


def namespace(pid: int, kind: str) -> int:
    """The inode number that names a namespace of a process."""
    return os.stat(f"{_root}/{pid}/ns/{kind}").st_ino


def thread_group(pid: int) -> int:
    """The process that a pid is of: another number if it is a thread's."""
    for line in read(pid, "status").splitlines():
        if line.startswith(b"Tgid:"):
            return int(line.split()[1])
    raise ValueError(f"{_root}/{pid}/status has no Tgid")


def shows_signal_pids(*, kernels: bool) -> bool:
    """Whether pids, the kernel's own or those of the procfs in use, are those that our signals go by."""
    return _has_our_pids(OURS) and _has_kernels_pids(OURS) if kernels else _has_our_pids(_root)


def require_kernel_pids() -> None:
    """Raises PortwatchError where we know processes by other pids than the kernel itself does."""
    if not shows_kernel_pids():
        raise PortwatchError(
            "in a pid namespace of its own, process trees are known by other pids than here; "
            "run it with the host's (docker run --pid=host, hostPID: true)"
        )


def _fields(content: bytes) -> list[bytes]:
    """What follows the comm in /proc/PID/stat: the state comes first."""
    return content[content.rindex(b")") + 2 :].split()
