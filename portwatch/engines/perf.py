"""Attaches programs to tracepoints and opens perf buffers, with perf_event_open(2).

This works even if tracefs is not mounted.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Mapping

from portwatch.errors import EngineUnavailable
from portwatch.linux import mounts
from portwatch.linux.libc import syscall, syscall_number

_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241, "riscv64": 241, "loongarch64": 241, "ppc64le": 319}
_TYPE_SOFTWARE, _TYPE_TRACEPOINT = 1, 2
_COUNT_BPF_OUTPUT = 10
_SAMPLE_RAW = 1 << 10
_SET_BPF, _ENABLE = 0x40042408, 0x2400
_ATTR_SIZE = 64
_FLAG_FD_CLOEXEC = 8


def open_tracepoint(tracefs: int, name: str) -> int:
    """Open a perf event on a tracepoint such as `syscalls/sys_enter_bind`, for all processes."""
    with open(
        f"events/{name}/id", encoding="ascii", opener=lambda path, flags: os.open(path, flags, dir_fd=tracefs)
    ) as file:
        tracepoint = int(file.read())
    # The event is opened for CPU 0, but its program runs on every CPU that reaches the tracepoint.
    return _open(name, 0, _TYPE_TRACEPOINT, tracepoint)


def open_tracepoints(tracepoints: Mapping[str, str]) -> dict[str, int]:
    """Open a perf event for each program's tracepoint. Return {} if any of the events cannot be opened."""
    events: dict[str, int] = {}
    try:
        tracefs = mounts.open_file_system("tracefs")
        try:
            for program, tracepoint in tracepoints.items():
                events[program] = open_tracepoint(tracefs, tracepoint)
        finally:
            os.close(tracefs)
    except (OSError, EngineUnavailable):  # no error: the engine declares the limit `failures`
        for event in events.values():
            os.close(event)
        return {}
    return events


def attach(event: int, program: int) -> None:
    """Attach a program to a perf event. The program stays attached until the event's descriptor is closed."""
    fcntl.ioctl(event, _SET_BPF, program)
    fcntl.ioctl(event, _ENABLE, 0)


def open_output(cpu: int) -> int:
    """Open a perf event for the buffer to which the programs on this CPU write.

    The descriptor becomes readable as soon as there is a record.
    """
    fd = _open(f"CPU {cpu}", cpu, _TYPE_SOFTWARE, _COUNT_BPF_OUTPUT, _SAMPLE_RAW, 1)
    fcntl.ioctl(fd, _ENABLE, 0)
    return fd


def _open(what: str, cpu: int, kind: int, config: int, sample_type: int = 0, wakeup_events: int = 0) -> int:
    number = syscall_number("perf_event_open", _PERF_EVENT_OPEN)
    # type, size, config, sample_period, sample_type, read_format, flags, wakeup_events. Later fields are 0.
    attr = struct.pack("=IIQQQQQI", kind, _ATTR_SIZE, config, 1, sample_type, 0, 0, wakeup_events)
    try:
        return syscall(number, attr.ljust(_ATTR_SIZE, b"\0"), -1, cpu, -1, _FLAG_FD_CLOEXEC)
    except OSError as error:
        error.filename = what
        raise
