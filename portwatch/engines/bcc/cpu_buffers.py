"""The perf buffers of all CPUs."""

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
"""The total for all CPUs. With two CPUs, a buffer holds 40,000 records. Larger buffers prolong an overload."""
_MIN_PAGES = 64
_UNPRIVILEGED_PAGES = 128
"""Per CPU: what kernel.perf_event_mlock_kb lets every user lock by default."""


class CpuBuffers:
    """One perf buffer for each online CPU. Programs find their CPU's buffer in the map `records`."""

    def __init__(self, records: Any, poll: select.epoll, pages: int | None = None) -> None:
        self._records = records
        self._poll = poll
        self._pages = pages or _pages_per_cpu()
        self._buffers: dict[int, tuple[int, PerfBuffer]] = {}
        """By CPU: the perf event, and its buffer."""
        self._left_over: list[Fields] = []
        """Records from buffers of CPUs that went offline."""
        self.lost = 0
        """Records that the kernel reports as lost."""

    def open(self) -> None:
        """Open the buffers: at their full size or, without the right to lock as much, smaller ones."""
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
        """Close the buffers of CPUs that went offline, and open buffers for new ones.

        A perf event ends with its CPU: it does not work again when the CPU comes back.
        """
        if not self._buffers:
            return
        online = set(online_cpus())
        self._close(self._buffers.keys() - online)
        with suppress(OSError):  # the CPU went offline again
            self._open(online - self._buffers.keys())

    def drain(self) -> list[Fields]:
        """Return the records of one buffer after the other."""
        records, self._left_over = self._left_over, []
        for _, buffer in self._buffers.values():
            records += self._read(buffer)
        return records

    def forget(self) -> None:
        """Close all descriptors, in a forked child. The epoll set stays: it is shared with the parent."""
        for event, buffer in self._buffers.values():
            with suppress(BufferError):  # a thread of the parent was reading at the moment of the fork
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
    """Return a power of two, as perf requires."""
    pages = _TOTAL_BYTES // os.sysconf("SC_NPROCESSORS_ONLN") // os.sysconf("SC_PAGESIZE")
    return 1 << max(_MIN_PAGES, pages).bit_length() - 1
