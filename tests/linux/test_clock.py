"""The kernel's clocks, as time of day."""

import time

import pytest

from portwatch.linux import clock


@pytest.fixture
def clocks(monkeypatch):
    """Clocks that a test sets; an interruption comes between them."""
    values = {"monotonic": 1_000, "interruptions": [0, 0, 0], "epoch": 5_000_000_000_000}

    def time_ns():
        values["monotonic"] += values["interruptions"].pop(0) if values["interruptions"] else 0
        return values["epoch"] + values["monotonic"]

    monkeypatch.setattr(time, "monotonic_ns", lambda: values["monotonic"])
    monkeypatch.setattr(time, "time_ns", time_ns)
    monkeypatch.setattr(clock, "_epoch", 0)
    return values


def test_an_interruption_between_the_clocks_is_not_taken_for_time(clocks):
    clocks["interruptions"] = [50_000_000, 0, 70_000_000]
    assert clock.monotonic_epoch() == 5_000_000_000_000


def test_a_clock_that_is_slewed_does_not_shuffle_what_happened(clocks):
    first = clock.monotonic_epoch()
    clocks["epoch"] -= 900_000
    assert clock.monotonic_epoch() == first


def test_a_clock_that_is_set_is_followed(clocks):
    first = clock.monotonic_epoch()
    clocks["epoch"] += 3_600_000_000_000
    assert clock.monotonic_epoch() == first + 3_600_000_000_000
