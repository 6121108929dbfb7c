"""The reader of a perf buffer, on memory that a test writes as the kernel would."""

import mmap
import struct

import pytest

from portwatch.engines.bcc.perf_buffer import PerfBuffer
from portwatch.record import LAYOUT

SIZE = mmap.PAGESIZE
HEAD, TAIL = 1024, 1032


class Kernel:
    """Writes records to a buffer in the same way as the kernel."""

    def __init__(self, start=0):
        self.memory = mmap.mmap(-1, 2 * SIZE)
        self.head = start
        self.memory[TAIL : TAIL + 8] = struct.pack("=Q", start)
        self._publish()

    def _publish(self):
        self.memory[HEAD : HEAD + 8] = struct.pack("=Q", self.head)

    def _write(self, kind, content):
        content = content.ljust((len(content) + 7) // 8 * 8, b"\0")
        for byte in struct.pack("=IHH", kind, 0, 8 + len(content)) + content:
            self.memory[SIZE + self.head % SIZE] = byte
            self.head += 1
        self._publish()

    def sample(self, number):
        record = struct.pack("=Q", number).ljust(LAYOUT.size, b"\0")
        # The record is preceded by its size, in 4 bytes. Both together end at a multiple of 8.
        self._write(9, struct.pack("=I", LAYOUT.size + 4) + record)

    def lose(self, count):
        self._write(2, struct.pack("=QQ", 7, count))


@pytest.mark.parametrize("start", [0, SIZE - 8, SIZE - 100, 5 * SIZE - 160])
def test_records_are_read_once_even_if_they_wrap_around_the_end(start):
    kernel = Kernel(start)
    buffer = PerfBuffer(kernel.memory)
    for number in range(5):
        kernel.sample(number)
    assert [fields[0] for fields in buffer.read()[0]] == [0, 1, 2, 3, 4]
    assert buffer.read() == ([], 0)
    kernel.sample(5)
    assert [fields[0] for fields in buffer.read()[0]] == [5]
    buffer.close()


def test_lost_records_are_counted():
    kernel = Kernel()
    buffer = PerfBuffer(kernel.memory)
    kernel.sample(1)
    kernel.lose(3)
    kernel.sample(2)
    kernel.lose(4)
    records, lost = buffer.read()
    assert [fields[0] for fields in records] == [1, 2]
    assert lost == 7
    buffer.close()


def test_read_advances_the_tail_to_the_head():
    kernel = Kernel()
    buffer = PerfBuffer(kernel.memory)
    kernel.sample(1)
    buffer.read()
    assert struct.unpack_from("=Q", kernel.memory, TAIL)[0] == kernel.head
    buffer.close()
