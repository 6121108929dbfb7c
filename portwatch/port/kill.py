"""Signal the holders of a port: exactly the processes that the user was shown, or none."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from errno import ENOSYS

from portwatch.errors import NotPermitted, PortwatchError
from portwatch.linux import procfs
from portwatch.model import Process
from portwatch.port.lookup import PortQuery, holders_of
from portwatch.watch.watcher import PortWatcher


def require_signal_pids(engine: str) -> None:
    """Raise PortwatchError if an engine's pids are not those that kill(2) takes here."""
    if not procfs.shows_signal_pids(kernels=engine != "poll"):
        raise PortwatchError(
            "portwatch runs in a private pid namespace, where signals go by other pids than those it found: "
            "no process was signalled; run it in the host's (docker run --pid=host, hostPID: true), or for the "
            "processes of this namespace alone (--engine poll, without --procfs)"
        )


def why_not_signalled(process: Process) -> str | None:
    """Return why a process must never be signalled; None if it may be."""
    if process.pid == os.getpid():
        return "it is portwatch itself, which inherited the port"
    if process.pid == 1 and procfs.shows_kernel_pids():
        return (
            "the machine cannot run without it; if it is systemd, `systemctl list-sockets` shows the unit that "
            "has the port, and `systemctl stop NAME.socket` closes it"
        )
    return None


def signal_holders(
    query: PortQuery, shown: tuple[Process, ...], number: signal.Signals, watcher: PortWatcher
) -> None:
    """Send a signal to these processes.

    Raise PortwatchError, and signal none, if one of them has ended or has let go of the port, or if this user
    may not signal it.
    """
    with _pidfds_of(shown) as pidfds:
        holders = holders_of(query.select(watcher.listeners()))
        for process in shown:
            if not any(map(process.is_same_as, holders)):
                raise _changed_error(process)
        for process, pidfd in pidfds:
            _require_permission(process, pidfd)
        for _, pidfd in pidfds:
            with suppress(ProcessLookupError):  # it has just ended by itself
                signal.pidfd_send_signal(pidfd, number)


@contextmanager
def _pidfds_of(processes: tuple[Process, ...]) -> Iterator[list[tuple[Process, int]]]:
    """Open a pidfd of each process: a signal through it cannot reach a later process with the same pid."""
    with ExitStack() as stack:
        pidfds = []
        for process in processes:
            pidfd = _pidfd_of(process)
            stack.callback(os.close, pidfd)
            pidfds.append((process, pidfd))
        yield pidfds


def _pidfd_of(process: Process) -> int:
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        raise _changed_error(process) from None
    except OSError as error:
        if error.errno != ENOSYS:
            raise
        raise PortwatchError(
            "this kernel has no pidfds (5.3 and later do), so a signal could reach a later process of this "
            f"pid: no process was signalled; to take that risk: kill {process.pid}"
        ) from None
    try:
        # Checked after the open: a process that has the pid now, with this start time, had it then too. The
        # watcher's listing does not prove that, as it is a moment old. Signals go by the pids of our own /proc.
        is_same = procfs.own_start(process.pid) == process.start_time
    except procfs.UNREADABLE:
        is_same = False
    if not is_same:
        os.close(pidfd)
        raise _changed_error(process)
    return pidfd


def _require_permission(process: Process, pidfd: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return
    except PermissionError:
        raise NotPermitted(
            f"{process.process} ({process.pid}) belongs to another user, so signalling it takes CAP_KILL: "
            "no process was signalled; run this as root (sudo portwatch kill)"
        ) from None


def _changed_error(process: Process) -> PortwatchError:
    return PortwatchError(
        f"{process.process} ({process.pid}) has ended or let go of the port since it was shown: "
        "no process was signalled; see who holds it now (portwatch who)"
    )
