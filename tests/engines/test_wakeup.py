"""What ends a wait."""

import os
import select

from portwatch.engines.wakeup import Wakeup


def is_set(wakeup):
    poller = select.poll()
    poller.register(wakeup, select.POLLIN)
    return bool(poller.poll(0))


def test_it_is_set_until_it_is_cleared():
    wakeup = Wakeup()
    assert not is_set(wakeup)
    wakeup.set()
    wakeup.set()
    assert is_set(wakeup)
    wakeup.clear()
    assert not is_set(wakeup)
    wakeup.close()


def test_once_it_is_closed_nothing_is_written_into_what_got_its_number():
    wakeup = Wakeup()
    number = wakeup.fileno()
    wakeup.close()
    successor = os.eventfd(0, os.EFD_NONBLOCK)
    assert successor == number, "the lowest free number is taken"
    wakeup.set()
    wakeup.close()
    assert not is_set(successor)
    os.close(successor)
