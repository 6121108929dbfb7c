"""Structs in array maps, of which programs and reader see the same bytes."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any, Generic, TypeVar

from portwatch.linux.kernel import RELEASE

S = TypeVar("S", bound=ctypes.Structure)

_MAPPED_SINCE = (5, 5)
FLAGS = 1 << 10 if RELEASE >= _MAPPED_SINCE else 0
"""BPF_F_MMAPABLE, for the maps' declarations."""


class SharedMap(Generic[S]):
    """One of them, as `value`.

    Mapped where the kernel can. A call for it instead keeps kprobes and perf events from running their
    programs on this CPU until it returns (bpf_disable_instrumentation), also for whoever preempts us: of
    10,000 listens in a slow machine, three were not told of.
    """

    def __init__(self, table: Any, layout: type[S]) -> None:
        self._table = table
        self._memory = mmap.mmap(table.map_fd, ctypes.sizeof(layout)) if FLAGS else None
        self.value = layout.from_buffer(self._memory) if self._memory else layout()

    def fetch(self) -> S:
        """What the programs have written."""
        if not FLAGS:
            found = self._table[ctypes.c_int(0)]  # of a type of bcc's own
            ctypes.memmove(ctypes.addressof(self.value), ctypes.addressof(found), ctypes.sizeof(self.value))
        return self.value

    def publish(self) -> None:
        """Shows the programs what we have written."""
        if not FLAGS:
            self._table[ctypes.c_int(0)] = self.value

    def close(self) -> None:
        """Unmaps it."""
        del self.value
        if self._memory:
            self._memory.close()
