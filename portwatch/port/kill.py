"""Signal the holders of a port: all the processes that the user was shown, or none."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from errno import ENOSYS

from portwatch.errors import NotPermitted, PortwatchError
from portwatch.linux import procfs
from portwatch.model import Process
from portwatch.port.lookup import PortQuery, all_holders
from portwatch.watch.watcher import PortWatcher


def require_signal_pids(engine: str) -> None:
    """Raise PortwatchError if kill(2) in this process does not use the pids that the engine reports."""
    if not procfs.shows_signal_pids(kernels=engine != "poll"):
        raise PortwatchError(
            "portwatch runs in a private pid namespace, where kill(2) uses other pids than portwatch found: "
            "no process was signalled; run portwatch in the host's pid namespace (docker run --pid=host, "
            "hostPID: true), or use --engine poll without --procfs to signal only processes of this namespace"
        )


def why_not_signalled(process: Process) -> str | None:
    """Return the reason why a process must never be signalled. None if it may be signalled."""
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
    """Send a signal to all processes in `shown`, or to none of them.

    If one of the processes has ended, no longer holds the port, or may not be signalled by this user, raise
    PortwatchError and send no signal.
    """
    with _pidfds_of(shown) as pidfds:
        holders = all_holders(query.select(watcher.listeners()))
        for process in shown:
            if not any(map(process.is_same_as, holders)):
                raise _changed_error(process)
        for process, pidfd in pidfds:
            _require_permission(process, pidfd)
        for _, pidfd in pidfds:
            with suppress(ProcessLookupError):  # the process has just ended by itself
                signal.pidfd_send_signal(pidfd, number)


@contextmanager
def _pidfds_of(processes: tuple[Process, ...]) -> Iterator[list[tuple[Process, int]]]:
    """Open a pidfd for each process. A signal through a pidfd never reaches a later process with that pid."""
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
            "this kernel has no pidfds (Linux 5.3 and later have them), so a signal could reach a later "
            f"process with the same pid: no process was signalled; to take that risk: kill {process.pid}"
        ) from None
    try:
        # Check the start time after opening the pidfd. If the process that has the pid now is the expected one,
        # it also had the pid when the pidfd was opened. The watcher's listing cannot prove that, because the
        # listing is older than the pidfd. Read our own /proc, which shows the pids that pidfd_open(2) takes.
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
            f"{process.process} ({process.pid}) belongs to another user, so signalling it requires CAP_KILL: "
            "no process was signalled; run this as root (sudo portwatch kill)"
        ) from None


def _changed_error(process: Process) -> PortwatchError:
    return PortwatchError(
        f"{process.process} ({process.pid}) has ended or no longer holds the port: "
        "no process was signalled; to see who holds it now, run portwatch who"
    )
