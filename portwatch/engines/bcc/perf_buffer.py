"""The reading side of one CPU's perf buffer.

bcc's own reader calls back for each record: while another thread is busy in Python, each
call waits its turn for the interpreter, and a storm is never caught up with. It also reads
for as long as there is more. Here what there is now is read in one pass.
"""

from __future__ import annotations

import mmap
import threading
from struct import Struct

from portwatch.engines.bcc.order import Fields
from portwatch.record import LAYOUT

_HEAD, _TAIL = 1024 // 8, 1032 // 8
"""Of struct perf_event_mmap_page, in words: how far the kernel has got, and how far we have."""
_HEADER = Struct("=IHH")
_LOST, _SAMPLE = 2, 9
_COUNT = Struct("=8xQ")
_RAW_SIZE = 4


class PerfBuffer:
    """Records as the kernel wrote them into `memory`: a page of positions, then a power of two of data."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._size = len(memory) - mmap.PAGESIZE
        self._view = memoryview(memory)
        self._positions = self._view[: mmap.PAGESIZE].cast("Q")
        self._data = self._view[mmap.PAGESIZE :]
        self._barrier = threading.Lock()

    def read(self) -> tuple[list[Fields], int]:
        """The records that are there now, and the number of those that were lost before them."""
        tail = self._positions[_TAIL]
        length = self._positions[_HEAD] - tail
        if not length:
            return [], 0
        # As in the core engine's ring: a lock is what keeps loads and stores in order in Python.
        with self._barrier:
            start = tail % self._size
            batch = bytes(self._data[start : start + length])
            batch += bytes(self._data[: length - len(batch)])
        with self._barrier:
            self._positions[_TAIL] = tail + length
        return _parse(batch)

    def close(self) -> None:
        """Unmaps it."""
        for view in (self._data, self._positions, self._view):
            view.release()
        self._memory.close()


def _parse(batch: bytes) -> tuple[list[Fields], int]:
    found: list[Fields] = []
    lost = offset = 0
    while offset < len(batch):
        kind, _, size = _HEADER.unpack_from(batch, offset)
        if kind == _SAMPLE:
            found.append(LAYOUT.unpack_from(batch, offset + _HEADER.size + _RAW_SIZE))
        elif kind == _LOST:
            lost += _COUNT.unpack_from(batch, offset + _HEADER.size)[0]
        offset += size
    return found, lost
