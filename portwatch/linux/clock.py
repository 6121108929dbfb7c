"""Conversion of the kernel's clocks to time of day."""

from __future__ import annotations

import os
import time
from functools import cache

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

_STEP_NS = 1_000_000
_epoch = 0


def monotonic_epoch() -> int:
    """Return the nanoseconds to add to CLOCK_MONOTONIC to get the time of day.

    The stored value is replaced only when a new measurement differs from it by more than a millisecond. Slewing
    the clock therefore does not reorder events.
    """
    global _epoch  # noqa: PLW0603  # one epoch per process
    _, measured = min(_measure_epoch() for _ in range(3))
    if abs(measured - _epoch) > _STEP_NS:
        _epoch = measured
    return _epoch


def _measure_epoch() -> tuple[int, int]:
    """Measure the epoch once. Return the maximum error of the measurement and the measured epoch."""
    before, now, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
    return after - before, now - (before + after) // 2


@cache
def boot_time() -> int:
    """Return the boot time in nanoseconds since the epoch. It is accurate only to one second.

    The boot time is read only once. Start times are computed from it and identify processes, so they must not
    change when the clock is set.
    """
    with open("/proc/stat", "rb") as stat:
        for line in stat:
            if line.startswith(b"btime "):
                return int(line[6:]) * 1_000_000_000
    raise ValueError("/proc/stat has no btime")


def process_start(ticks: int) -> int:
    """Convert a process's start time to nanoseconds since the epoch.

    `ticks` is the number of clock ticks since boot, field 22 of /proc/PID/stat.
    """
    return boot_time() + ticks * TICK_NS


def ticks(start_time: int) -> int:
    """Convert a start time back to clock ticks since boot. This is the inverse of `process_start`."""
    return (start_time - boot_time()) // TICK_NS
