"""Reads records from the perf buffer of one CPU.

bcc's own reader calls a Python function for each record. If another thread keeps the interpreter busy, every
call waits for the GIL, and the reader never catches up with a storm. It also reads until the buffer is empty,
which may never happen. The reader in this module copies in one pass the records that are there now.
"""

from __future__ import annotations

import mmap
import threading
from struct import Struct

from portwatch.engines.bcc.order import Fields
from portwatch.record import LAYOUT

_HEAD, _TAIL = 1024 // 8, 1032 // 8
"""Offsets of the kernel's and the reader's positions in struct perf_event_mmap_page, in words of 8 bytes."""
_HEADER = Struct("=IHH")
_LOST, _SAMPLE = 2, 9
_COUNT = Struct("=8xQ")
_RAW_SIZE = 4


class PerfBuffer:
    """A mapped perf buffer. Its first page has the positions. The rest is data, a power of two in size."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._size = len(memory) - mmap.PAGESIZE
        self._view = memoryview(memory)
        self._positions = self._view[: mmap.PAGESIZE].cast("Q")
        self._data = self._view[mmap.PAGESIZE :]
        self._barrier = threading.Lock()

    def read(self) -> tuple[list[Fields], int]:
        """Remove and return the records, and the number of records that the kernel reports as lost."""
        tail = self._positions[_TAIL]
        length = self._positions[_HEAD] - tail
        if not length:
            return [], 0
        # Python has no memory barrier, but taking a lock implies one (see core/ring.py).
        with self._barrier:
            start = tail % self._size
            batch = bytes(self._data[start : start + length])
            batch += bytes(self._data[: length - len(batch)])
        with self._barrier:
            self._positions[_TAIL] = tail + length
        return _parse(batch)

    def close(self) -> None:
        """Unmap the buffer."""
        for view in (self._data, self._positions, self._view):
            view.release()
        self._memory.close()


def _parse(batch: bytes) -> tuple[list[Fields], int]:
    records: list[Fields] = []
    lost = offset = 0
    while offset < len(batch):
        kind, _, size = _HEADER.unpack_from(batch, offset)
        if kind == _SAMPLE:
            records.append(LAYOUT.unpack_from(batch, offset + _HEADER.size + _RAW_SIZE))
        elif kind == _LOST:
            lost += _COUNT.unpack_from(batch, offset + _HEADER.size)[0]
        offset += size
    return records, lost
