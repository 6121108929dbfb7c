"""The reader of the ring buffer, on memory that a test writes as the kernel would."""

import mmap
import os
import struct
from types import SimpleNamespace

import pytest

from portwatch.engines.core import ring as module
from portwatch.engines.core.ring import BUSY, HEADER, Ring

RECORD = 20
STRIDE = HEADER + 24  # the kernel rounds up to 8 bytes
SIZE = 4 * mmap.PAGESIZE
ROOM = SIZE // STRIDE


class Kernel:
    """The producer. Its memory has a page with the reader's position, one with its own, and the data twice."""

    def __init__(self):
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * mmap.PAGESIZE + 2 * SIZE)
        self._memory = mmap.mmap(self.fd, 2 * mmap.PAGESIZE + 2 * SIZE)
        self.produced = 0

    @property
    def consumed(self):
        return struct.unpack_from("=Q", self._memory)[0]

    def start_at(self, position):
        struct.pack_into("=Q", self._memory, 0, position)
        self.produced = position
        self._publish()

    def reserve(self, content):
        """Reserve a record, which the reader must not read yet. Return its position."""
        position = self.produced
        self._write(position, struct.pack("=II", RECORD | BUSY, 0) + content.ljust(RECORD, b"\0"))
        self.produced += STRIDE
        self._publish()
        return position

    def commit(self, position):
        self._write(position, struct.pack("=I", RECORD))

    def submit(self, content):
        self.commit(self.reserve(content))

    def _write(self, position, data):
        for offset, byte in enumerate(data):
            place = 2 * mmap.PAGESIZE + (position + offset) % SIZE
            self._memory[place] = self._memory[place + SIZE] = byte

    def _publish(self):
        struct.pack_into("=Q", self._memory, mmap.PAGESIZE, self.produced)


@pytest.fixture
def kernel():
    return Kernel()


@pytest.fixture
def ring(kernel, monkeypatch):
    poll = SimpleNamespace(register=lambda *_: None, close=lambda: None)  # a memfd cannot be polled
    monkeypatch.setattr(module.select, "epoll", lambda: poll)
    ring = Ring(kernel.fd, SIZE, RECORD)
    yield ring
    ring.close()


def contents(batch):
    """Return the contents of all records in a batch."""
    assert len(batch) % STRIDE == 0
    return [batch[at + HEADER : at + HEADER + RECORD].rstrip(b"\0") for at in range(0, len(batch), STRIDE)]


def test_an_empty_ring_has_no_records(ring):
    assert ring.read() == b""


def test_records_are_read_once_in_the_order_in_which_they_were_reserved(kernel, ring):
    for content in (b"one", b"two"):
        kernel.submit(content)
    assert contents(ring.read()) == [b"one", b"two"]
    assert ring.read() == b""
    assert ring.consumed == ring.produced == kernel.consumed == 2 * STRIDE


def test_reading_stops_at_a_record_that_is_not_committed_and_resumes_there(kernel, ring):
    kernel.submit(b"one")
    busy = kernel.reserve(b"two")
    kernel.submit(b"three")
    assert contents(ring.read()) == [b"one"]
    assert ring.read() == b""
    assert (ring.consumed, ring.produced) == (STRIDE, 3 * STRIDE)
    kernel.commit(busy)
    assert contents(ring.read()) == [b"two", b"three"]


def test_a_batch_that_wraps_around_the_end_is_whole(kernel, ring):
    kernel.start_at(SIZE - STRIDE - 8)
    for content in (b"before the end", b"across the end", b"at the start"):
        kernel.submit(content)
    assert contents(ring.read()) == [b"before the end", b"across the end", b"at the start"]


def test_a_full_ring_is_read_in_one_batch(kernel, ring):
    kernel.start_at(7 * STRIDE)
    expected = [str(number).encode() for number in range(ROOM)]
    for content in expected:
        kernel.submit(content)
    assert contents(ring.read()) == expected


def test_positions_keep_rising_beyond_the_size_of_the_buffer(kernel, ring):
    for number in range(5 * ROOM):
        kernel.submit(b"%d" % number)
        assert contents(ring.read()) == [b"%d" % number]
    assert ring.consumed == 5 * ROOM * STRIDE > SIZE
