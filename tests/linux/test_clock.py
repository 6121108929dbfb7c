"""Conversion of the kernel's clocks to time of day."""

import time

import pytest

from portwatch.linux import clock


@pytest.fixture
def clocks(monkeypatch):
    """Replace both clocks by values that a test sets.

    Each reading of the time of day advances CLOCK_MONOTONIC by the next value in `interruptions`.
    """
    values = {"monotonic": 1_000, "interruptions": [0, 0, 0], "epoch": 5_000_000_000_000}

    def time_ns():
        values["monotonic"] += values["interruptions"].pop(0) if values["interruptions"] else 0
        return values["epoch"] + values["monotonic"]

    monkeypatch.setattr(time, "monotonic_ns", lambda: values["monotonic"])
    monkeypatch.setattr(time, "time_ns", time_ns)
    monkeypatch.setattr(clock, "_epoch", 0)
    return values


def test_epoch_comes_from_the_measurement_with_the_shortest_interruption(clocks):
    clocks["interruptions"] = [50_000_000, 0, 70_000_000]
    assert clock.monotonic_epoch() == 5_000_000_000_000


def test_epoch_stays_the_same_if_the_clock_changes_by_less_than_a_millisecond(clocks):
    first = clock.monotonic_epoch()
    clocks["epoch"] -= 900_000
    assert clock.monotonic_epoch() == first


def test_epoch_changes_if_the_clock_is_set(clocks):
    first = clock.monotonic_epoch()
    clocks["epoch"] += 3_600_000_000_000
    assert clock.monotonic_epoch() == first + 3_600_000_000_000
