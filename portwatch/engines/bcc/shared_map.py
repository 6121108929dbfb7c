"""Structs in BPF array maps, which this process shares with the BPF programs."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any, Generic, TypeVar

from portwatch.linux.kernel import RELEASE

S = TypeVar("S", bound=ctypes.Structure)

_MAPPED_SINCE = (5, 5)
FLAGS = 1 << 10 if RELEASE >= _MAPPED_SINCE else 0
"""The flags of the maps. They are BPF_F_MMAPABLE if the kernel supports this flag, otherwise 0."""


class SharedMap(Generic[S]):
    """A struct in an array map. `value` is the struct.

    If the kernel allows it, the map is memory-mapped. Otherwise each access is a call of bpf(2), during which
    events may be missed. Until such a call returns, the kernel runs no programs at kprobes and perf events on
    this CPU (bpf_disable_instrumentation), not even for another process that preempts this process. On a slow
    machine, 3 of 10,000 listens were missed.
    """

    def __init__(self, table: Any, layout: type[S]) -> None:
        self._table = table
        self._memory = mmap.mmap(table.map_fd, ctypes.sizeof(layout)) if FLAGS else None
        self.value = layout.from_buffer(self._memory) if self._memory else layout()

    def fetch(self) -> S:
        """Return `value`, updated with everything that the programs have written."""
        if not FLAGS:
            entry = self._table[ctypes.c_int(0)]  # an object of bcc's own type
            ctypes.memmove(ctypes.addressof(self.value), ctypes.addressof(entry), ctypes.sizeof(self.value))
        return self.value

    def publish(self) -> None:
        """Make `value` visible to the programs."""
        if not FLAGS:
            self._table[ctypes.c_int(0)] = self.value

    def close(self) -> None:
        """Unmap `value`, which must not be used afterwards."""
        del self.value
        if self._memory:
            self._memory.close()
