"""The reader that returns the records of several buffers in the order of their events."""

import random

import pytest

from portwatch.engines.bcc.order import OrderedReader


class Buffers:
    """The buffers of several CPUs. `after_each` is called when a buffer has been drained."""

    def __init__(self, count):
        self.now = 0
        self.records = [[] for _ in range(count)]
        self.after_each = lambda: None

    def record(self, cpu, event):
        self.now += 1
        self.records[cpu].append((self.now, event))

    def clock(self):
        self.now += 1
        return self.now

    def drain(self):
        drained = []
        for buffer in self.records:
            drained += buffer
            buffer.clear()
            self.after_each()
        return drained


def test_a_close_that_is_drained_before_its_open_is_returned_after_the_open():
    buffers = Buffers(2)
    reader = OrderedReader(buffers.drain, buffers.clock)

    def record_once():
        buffers.after_each = lambda: None
        buffers.record(0, "open")
        buffers.record(1, "close")

    buffers.after_each = record_once
    records = reader.read()
    records += reader.read()
    assert [event for _, event in records] == ["open", "close"]


def test_records_that_arrived_before_a_read_are_all_returned_by_that_read():
    buffers = Buffers(3)
    reader = OrderedReader(buffers.drain, buffers.clock)
    for cpu in (2, 0, 1):
        buffers.record(cpu, cpu)
    assert [event for _, event in reader.read()] == [2, 0, 1]
    assert not reader.has_pending


def test_has_pending_is_true_only_while_records_are_kept_for_the_next_read():
    buffers = Buffers(2)
    reader = OrderedReader(buffers.drain, buffers.clock)
    buffers.after_each = lambda: buffers.record(1, "storm")
    reader.read()
    assert reader.has_pending
    buffers.after_each = lambda: None
    reader.read()
    assert not reader.has_pending


@pytest.mark.parametrize("seed", range(20))
def test_no_record_is_lost_and_no_close_comes_before_its_open(seed):
    rng = random.Random(seed)
    buffers = Buffers(4)
    reader = OrderedReader(buffers.drain, buffers.clock)
    open_sockets, opened = set(), 0

    def open_and_close():
        nonlocal opened
        for _ in range(rng.randrange(6)):
            if open_sockets and rng.random() < 0.5:
                buffers.record(rng.randrange(4), ("close", open_sockets.pop()))
            else:
                opened += 1
                open_sockets.add(opened)
                buffers.record(rng.randrange(4), ("open", opened))

    buffers.after_each = open_and_close
    records = [record for _ in range(50) for record in reader.read()]
    buffers.after_each = lambda: None
    records += reader.read()
    known = set()
    for _, (kind, number) in records:
        if kind == "open":
            known.add(number)
        else:
            known.remove(number)
    assert known == open_sockets
    times = [time for time, _ in records]
    assert times == sorted(times)
