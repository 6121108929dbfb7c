"""The eventfd that ends the wait for records."""

import os
import select

from portwatch.engines.wakeup import Wakeup


def is_set(wakeup):
    poller = select.poll()
    poller.register(wakeup, select.POLLIN)
    return bool(poller.poll(0))


def test_a_wakeup_stays_set_until_it_is_cleared():
    wakeup = Wakeup()
    assert not is_set(wakeup)
    wakeup.set()
    wakeup.set()
    assert is_set(wakeup)
    wakeup.clear()
    assert not is_set(wakeup)
    wakeup.close()


def test_set_after_close_does_not_write_to_another_file_with_the_same_descriptor_number():
    wakeup = Wakeup()
    number = wakeup.fileno()
    wakeup.close()
    successor = os.eventfd(0, os.EFD_NONBLOCK)
    assert successor == number, "the kernel assigns the lowest free number"
    wakeup.set()
    wakeup.close()
    assert not is_set(successor)
    os.close(successor)
