"""Records of several buffers come out in the order in which they happened."""

import random

import pytest

from portwatch.engines.bcc.order import OrderedReader


class Buffers:
    """Buffers of several CPUs, of which one is emptied after the other while records still come."""

    def __init__(self, count):
        self.now = 0
        self.records = [[] for _ in range(count)]
        self.between = lambda: None

    def happen(self, cpu, what):
        self.now += 1
        self.records[cpu].append((self.now, what))

    def clock(self):
        self.now += 1
        return self.now

    def drain(self):
        found = []
        for buffer in self.records:
            found += buffer
            buffer.clear()
            self.between()
        return found


def test_a_close_found_before_its_open_waits_for_it():
    buffers = Buffers(2)
    order = OrderedReader(buffers.drain, buffers.clock)

    def happen_once():
        buffers.between = lambda: None
        buffers.happen(0, "open")
        buffers.happen(1, "close")

    buffers.between = happen_once
    taken = order.read()
    taken += order.read()
    assert [what for _, what in taken] == ["open", "close"]


def test_what_happened_before_is_taken_at_once():
    buffers = Buffers(3)
    order = OrderedReader(buffers.drain, buffers.clock)
    for cpu in (2, 0, 1):
        buffers.happen(cpu, cpu)
    assert [what for _, what in order.read()] == [2, 0, 1]
    assert not order.has_pending


def test_what_waits_is_said_so_that_nobody_sleeps_on_it():
    buffers = Buffers(2)
    order = OrderedReader(buffers.drain, buffers.clock)
    buffers.between = lambda: buffers.happen(1, "storm")
    order.read()
    assert order.has_pending
    buffers.between = lambda: None
    order.read()
    assert not order.has_pending


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_and_no_close_comes_before_its_open(seed):
    chance = random.Random(seed)
    buffers = Buffers(4)
    order = OrderedReader(buffers.drain, buffers.clock)
    open_sockets, made = set(), 0

    def live():
        nonlocal made
        for _ in range(chance.randrange(6)):
            if open_sockets and chance.random() < 0.5:
                buffers.happen(chance.randrange(4), ("close", open_sockets.pop()))
            else:
                made += 1
                open_sockets.add(made)
                buffers.happen(chance.randrange(4), ("open", made))

    buffers.between = live
    taken = [record for _ in range(50) for record in order.read()]
    buffers.between = lambda: None
    taken += order.read()
    known = set()
    for _, (kind, number) in taken:
        if kind == "open":
            known.add(number)
        else:
            known.remove(number)
    assert known == open_sockets
    assert [time for time, _ in taken] == sorted(time for time, _ in taken)
