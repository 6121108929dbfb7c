"""The reading side of a BPF ring buffer whose records are all of one size.

libbpf's own reader calls back for each record, 2 µs each through ctypes. Here
a batch is read straight from the shared memory in one pass.
"""

from __future__ import annotations

import mmap
import select
import struct
import threading

HEADER = 8
BUSY = 1 << 31


class Ring:
    """Batches of records, each the bytes of `record_size`, in the order they were reserved."""

    def __init__(self, fd: int, size: int, record_size: int) -> None:
        self._size = size
        self._stride = HEADER + (record_size + 7) // 8 * 8
        self._headers = struct.Struct(f"<I{self._stride - 4}x")
        # The data are mapped twice, one behind the other: a batch never wraps.
        self._consumer = mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._data = mmap.mmap(
            fd, mmap.PAGESIZE + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=mmap.PAGESIZE
        )
        self._consumer_position = memoryview(self._consumer).cast("Q")
        self._producer_position = memoryview(self._data)[:8].cast("Q")
        self._view = memoryview(self._data)
        self._barrier = threading.Lock()
        self._poll = select.epoll()
        self._poll.register(fd, select.EPOLLIN)

    def fileno(self) -> int:
        """Readable while there are records."""
        return self._poll.fileno()

    @property
    def produced(self) -> int:
        """How far the kernel has got; `read` past it to have all that is there now."""
        return self._producer_position[0]

    @property
    def consumed(self) -> int:
        """How far we have got."""
        return self._consumer_position[0]

    def read(self) -> bytes:
        """Every record that is complete, each behind its header."""
        start = self._consumer_position[0]
        length = self._producer_position[0] - start
        if not length:
            return b""
        # Elsewhere than on x86 the loads of the positions, the headers and the data need
        # to be kept in order; taking a lock is what does that in Python.
        with self._barrier:
            offset = mmap.PAGESIZE + start % self._size
            view = self._view[offset : offset + length]
            complete = length
            for index, (header,) in enumerate(self._headers.iter_unpack(view)):
                if header & BUSY:
                    complete = index * self._stride
                    break
        with self._barrier:
            batch = bytes(view[:complete])
        with self._barrier:
            self._consumer_position[0] = start + complete
        return batch

    def close(self) -> None:
        """Unmaps the buffer."""
        self._poll.close()
        for view in (self._view, self._consumer_position, self._producer_position):
            view.release()
        self._data.close()
        self._consumer.close()
