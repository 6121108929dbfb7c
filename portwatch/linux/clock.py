"""The kernel's clocks, as time of day."""

from __future__ import annotations

import os
import time
from functools import cache

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


_STEP_NS = 1_000_000
_epoch = 0


def monotonic_epoch() -> int:
    """What to add to CLOCK_MONOTONIC for the time of day, in nanoseconds, as of now.

    The same as before while that is right to the millisecond: what happened later is not shown as earlier.
    """
    global _epoch  # noqa: PLW0603  # one clock for all of a process
    measured = min(map(_measured_epoch, range(3)))[1]
    if abs(measured - _epoch) > _STEP_NS:
        _epoch = measured
    return _epoch


def _measured_epoch(_: int) -> tuple[int, int]:
    """How far it may be off, by an interruption between the clocks, and the epoch."""
    before, now, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
    return after - before, now - (before + after) // 2


@cache
def boot_time() -> int:
    """When the kernel booted, in nanoseconds since the epoch, to the second as the kernel says it.

    Read once: a clock that is set while we run must not make two processes of one.
    """
    with open("/proc/stat", "rb") as stat:
        for line in stat:
            if line.startswith(b"btime "):
                return int(line[6:]) * 1_000_000_000
    raise ValueError("/proc/stat has no btime")


def process_start(ticks: int) -> int:
    """The start of a process, from clock ticks since boot (field 22 of /proc/PID/stat)."""
    return boot_time() + ticks * TICK_NS


def ticks(start_time: int) -> int:
    """The same start as the kernel counts it: what `process_start` was given."""
    return (start_time - boot_time()) // TICK_NS
