"""Ending who holds a port: the very processes that were shown, or nobody."""

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
    """Raises PortwatchError where an engine knows processes by other pids than signals go by."""
    if not procfs.shows_signal_pids(kernels=engine != "poll"):
        raise PortwatchError(
            "in a pid namespace of its own, signals go by other pids than who holds a port is known by: nobody "
            "was signalled; run it with the host's (docker run --pid=host, hostPID: true), or by the pids "
            "of this namespace alone (--engine poll, without --procfs)"
        )


def why_not_signalled(process: Process) -> str | None:
    """Why a process is not to be signalled, whoever asks for it; None for all but two."""
    if process.pid == os.getpid():
        return "that is portwatch itself, which was started with the port open"
    if process.pid == 1 and procfs.shows_kernel_pids():
        return (
            "without it the machine ends; if it is systemd, `systemctl list-sockets` names the unit that "
            "has the port, and `systemctl stop NAME.socket` closes it"
        )
    return None


def signal_holders(
    query: PortQuery, shown: tuple[Process, ...], number: signal.Signals, watcher: PortWatcher
) -> None:
    """Sends a signal to these processes, if each is still the one that was shown, and holds the port.

    Raises PortwatchError, and has signalled nobody, if one of them is not, or is not ours to signal.
    """
    with _pinned(shown) as descriptors:
        holding = holders_of(query.select(watcher.listeners()))
        for process in shown:
            if not any(map(process.is_same_as, holding)):
                raise _changed(process)
        for process, descriptor in descriptors:
            _assert_allowed(process, descriptor)
        for _, descriptor in descriptors:
            with suppress(ProcessLookupError):  # it ended by itself, just now
                signal.pidfd_send_signal(descriptor, number)


@contextmanager
def _pinned(processes: tuple[Process, ...]) -> Iterator[list[tuple[Process, int]]]:
    """Descriptors by which signals reach these processes and no later ones of the same pids."""
    with ExitStack() as stack:
        descriptors = []
        for process in processes:
            descriptor = _open(process)
            stack.callback(os.close, descriptor)
            descriptors.append((process, descriptor))
        yield descriptors


def _open(process: Process) -> int:
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        raise _changed(process) from None
    except OSError as error:
        if error.errno != ENOSYS:
            raise
        raise PortwatchError(
            "this kernel has no pidfd (5.3 and later have it), without which a signal might reach "
            f"another process: nobody was signalled; to do it all the same: kill {process.pid}"
        ) from None
    try:
        # After the opening: whose pid it is now had it then, or it would have started later. What the
        # watcher lists is no such proof, as it may be of a moment before. By our own pids, as signals go.
        is_same = procfs.own_start(process.pid) == process.start_time
    except procfs.UNREADABLE:
        is_same = False
    if not is_same:
        os.close(descriptor)
        raise _changed(process)
    return descriptor


def _assert_allowed(process: Process, descriptor: int) -> None:
    try:
        signal.pidfd_send_signal(descriptor, 0)
    except ProcessLookupError:
        return
    except PermissionError:
        raise NotPermitted(
            f"{process.process} ({process.pid}) is another user's, whom to signal takes CAP_KILL: "
            "nobody was signalled; run it as root (sudo portwatch kill)"
        ) from None


def _changed(process: Process) -> PortwatchError:
    return PortwatchError(
        f"{process.process} ({process.pid}) has ended, or does not hold the port any more, since it was shown: "
        "nobody was signalled; look again, who has it now (portwatch who)"
    )
