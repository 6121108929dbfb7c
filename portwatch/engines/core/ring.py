"""Reads records from a BPF ring buffer. All records must have the same size.

libbpf's own reader calls a function for each record, which takes 2 µs through ctypes. The reader in this module
copies a batch of records from the shared memory in one pass.
"""

from __future__ import annotations

import mmap
import select
import struct
import threading
from contextlib import suppress

HEADER = 8
BUSY = 1 << 31


class Ring:
    """A ring buffer with records of `record_size` bytes, in the order in which the programs reserved them."""

    def __init__(self, fd: int, size: int, record_size: int) -> None:
        self._size = size
        self._stride = HEADER + (record_size + 7) // 8 * 8
        self._headers = struct.Struct(f"<I{self._stride - 4}x")
        # The kernel maps the data area twice in a row, so a batch that wraps is still contiguous.
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
        """Return a descriptor that is readable while there are records."""
        return self._poll.fileno()

    @property
    def produced(self) -> int:
        """The producer position. Once `consumed` reaches it, all records now in the ring have been read."""
        return self._producer_position[0]

    @property
    def consumed(self) -> int:
        """The consumer position."""
        return self._consumer_position[0]

    def read(self) -> bytes:
        """Remove and return all records, with headers, up to the first record that is not committed yet."""
        start = self._consumer_position[0]
        # Positions, headers and data must be loaded in this order, which only x86 ensures by itself. Python has
        # no memory barrier, but taking a lock implies one.
        with self._barrier:
            length = self._producer_position[0] - start
        if not length:
            return b""
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

    def forget(self) -> None:
        """Close the epoll descriptor and unmap the buffer in a forked child."""
        with suppress(BufferError):  # if a thread was reading at the fork, the buffer stays mapped
            self.close()

    def close(self) -> None:
        """Close the epoll descriptor and unmap the buffer."""
        self._poll.close()
        for view in (self._view, self._consumer_position, self._producer_position):
            view.release()
        self._data.close()
        self._consumer.close()
