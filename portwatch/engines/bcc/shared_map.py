"""Structs in array maps, which BPF programs and this process share."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any, Generic, TypeVar

from portwatch.linux.kernel import RELEASE

S = TypeVar("S", bound=ctypes.Structure)

_MAPPED_SINCE = (5, 5)
FLAGS = 1 << 10 if RELEASE >= _MAPPED_SINCE else 0
"""BPF_F_MMAPABLE for the declaration of the maps, where the kernel supports it. Else 0."""


class SharedMap(Generic[S]):
    """A struct in an array map, as `value`.

    It is memory-mapped where the kernel allows that. The bpf(2) calls that are the alternative miss events:
    until such a call returns, programs at kprobes and perf events do not run on this CPU
    (bpf_disable_instrumentation), even for a process that preempts us. On a slow machine, 3 of 10,000 listens
    were missed.
    """

    def __init__(self, table: Any, layout: type[S]) -> None:
        self._table = table
        self._memory = mmap.mmap(table.map_fd, ctypes.sizeof(layout)) if FLAGS else None
        self.value = layout.from_buffer(self._memory) if self._memory else layout()

    def fetch(self) -> S:
        """Return the value as the programs have written it."""
        if not FLAGS:
            entry = self._table[ctypes.c_int(0)]  # bcc has its own type for it
            ctypes.memmove(ctypes.addressof(self.value), ctypes.addressof(entry), ctypes.sizeof(self.value))
        return self.value

    def publish(self) -> None:
        """Make `value` visible to the programs."""
        if not FLAGS:
            self._table[ctypes.c_int(0)] = self.value

    def close(self) -> None:
        """Unmap the value."""
        del self.value
        if self._memory:
            self._memory.close()
