"""The perf buffers, one for each online CPU."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from portwatch.engines import perf
from portwatch.engines.bcc.order import Fields
from portwatch.engines.bcc.perf_buffer import PerfBuffer
from portwatch.errors import NotPermitted
from portwatch.linux import capabilities

_TOTAL_BYTES = 16 << 20
"""The size of all buffers together. With two CPUs, each buffer holds 40,000 records.

Larger buffers would prolong an overload."""
_MIN_PAGES = 64
_UNPRIVILEGED_PAGES = 128
"""The pages per CPU that kernel.perf_event_mlock_kb lets every user lock by default."""


class CpuBuffers:
    """One perf buffer for each online CPU. Programs find the buffer of their CPU in the map `records`."""

    def __init__(self, records: Any, poll: select.epoll, pages: int | None = None) -> None:
        self._records = records
        self._poll = poll
        self._pages = pages or _pages_per_cpu()
        self._buffers: dict[int, tuple[int, PerfBuffer]] = {}
        """The perf event and its buffer, by CPU."""
        self._left_over: list[Fields] = []
        """Records from the closed buffers of CPUs that went offline."""
        self.lost = 0
        """The number of records that the kernel reports as lost."""

    def open(self) -> None:
        """Open the buffers. If this process may not lock enough memory for them, open smaller buffers."""
        cpus = online_cpus()
        try:
            self._open(cpus)
        except PermissionError:
            self._close(self._buffers)
            self._pages = min(self._pages, _UNPRIVILEGED_PAGES)
            try:
                self._open(cpus)
            except PermissionError as error:
                raise NotPermitted(
                    f"cannot open the perf buffers ({error}); if the limit on locked memory is the reason: "
                    f"{capabilities.RAISE_MEMLOCK}, or grant {capabilities.IPC_LOCK.name}"
                ) from error

    def follow_cpus(self) -> None:
        """Close the buffers of CPUs that went offline, and open buffers for CPUs that came online.

        When a CPU goes offline, its perf event stops for good, even if the CPU comes back.
        """
        if not self._buffers:
            return
        online = set(online_cpus())
        self._close(self._buffers.keys() - online)
        with suppress(OSError):  # the CPU went offline again
            self._open(online - self._buffers.keys())

    def drain(self) -> list[Fields]:
        """Empty one buffer after the other, and return their records."""
        records, self._left_over = self._left_over, []
        for _, buffer in self._buffers.values():
            records += self._read(buffer)
        return records

    def forget(self) -> None:
        """Unmap the buffers and close the perf events in a forked child.

        The events stay registered in the epoll set, because the child shares this set with the parent.
        """
        for event, buffer in self._buffers.values():
            with suppress(BufferError):  # if a thread was reading at the fork, the buffer stays mapped
                buffer.close()
            os.close(event)
        self._buffers.clear()

    def close(self) -> None:
        """Close all buffers."""
        self._close(self._buffers)

    def _open(self, cpus: Iterable[int]) -> None:
        for cpu in cpus:
            event = perf.open_output(cpu)
            try:
                memory = mmap.mmap(event, (1 + self._pages) * mmap.PAGESIZE)
            except OSError:
                os.close(event)
                raise
            self._buffers[cpu] = event, PerfBuffer(memory)
            self._records[ctypes.c_int(cpu)] = ctypes.c_int(event)
            self._poll.register(event, select.EPOLLIN)

    def _close(self, cpus: Iterable[int]) -> None:
        for cpu in list(cpus):
            event, buffer = self._buffers.pop(cpu)
            self._left_over += self._read(buffer)
            buffer.close()
            self._poll.unregister(event)
            os.close(event)

    def _read(self, buffer: PerfBuffer) -> list[Fields]:
        records, lost = buffer.read()
        self.lost += lost
        return records


def online_cpus() -> list[int]:
    """Return the numbers of the CPUs that are online."""
    ranges = Path("/sys/devices/system/cpu/online").read_text("ascii").strip().split(",")
    bounds = [[int(bound) for bound in one.split("-")] for one in ranges]
    return [cpu for first, *last in bounds for cpu in range(first, (last or [first])[0] + 1)]


def _pages_per_cpu() -> int:
    """Return the size of a buffer in pages. It is a power of two, as perf requires."""
    pages = _TOTAL_BYTES // os.sysconf("SC_NPROCESSORS_ONLN") // os.sysconf("SC_PAGESIZE")
    return 1 << max(_MIN_PAGES, pages).bit_length() - 1
