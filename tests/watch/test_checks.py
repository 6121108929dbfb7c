from types import SimpleNamespace

import pytest

import portwatch.watch.checks
from portwatch.watch.checks import CheckSchedule
from portwatch.watch.counts import Counts
from tests.fake_engine import FakeEngine

INTERVAL = 60.0


class Schedule:
    """A CheckSchedule with a simulated clock. The first check was made at second 0."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(portwatch.watch.checks, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.engine, self.counts = FakeEngine(), Counts()
        self.checks = CheckSchedule(self.engine, self.counts, INTERVAL)
        self.check()

    def check(self, has_found=False):
        """Check at once, and return the seconds until the next check is due."""
        missed = self.engine.recursion_misses - self.counts.recursion_misses
        self.checks.checked(has_missed=missed > 0, has_found=has_found)
        self.counts.recursion_misses += missed
        return self.checks.due() - self.now

    def skip_and_check(self, has_found=False):
        """Skip a BPF program, check when a check is due, and return the seconds from the skip to the check."""
        begin = self.now
        self.engine.recursion_misses += 1
        self.now += 2  # the count of skips is read once a second
        self.now = max(self.now, self.checks.due())
        self.check(has_found)
        return self.now - begin


@pytest.fixture
def schedule(monkeypatch):
    return Schedule(monkeypatch)


def test_the_first_check_is_due_at_once():
    assert CheckSchedule(FakeEngine(), Counts(), INTERVAL).due() <= 0


def test_without_losses_a_check_is_due_after_the_interval(schedule):
    assert schedule.checks.due() == INTERVAL
    assert not schedule.checks.is_interval_over()
    schedule.now = INTERVAL
    assert schedule.checks.is_interval_over()


def test_a_check_after_skips_that_finds_nothing_doubles_the_wait(schedule):
    assert [schedule.skip_and_check() for _ in range(6)] == [5, 10, 20, 40, 60, 60]


def test_a_check_after_skips_that_finds_a_difference_resets_the_wait(schedule):
    assert [schedule.skip_and_check() for _ in range(3)] == [5, 10, 20]
    schedule.skip_and_check(has_found=True)
    assert schedule.skip_and_check() == 5


def test_a_check_without_skips_resets_the_wait(schedule):
    assert [schedule.skip_and_check() for _ in range(3)] == [5, 10, 20]
    schedule.now += INTERVAL
    assert schedule.check() == INTERVAL
    assert schedule.skip_and_check() == 5


def test_after_a_repair_the_next_repair_waits_twice_as_long_as_the_repair_took(schedule):
    schedule.engine.lost = 3
    assert schedule.checks.due() == 0
    assert schedule.checks.is_repair_due()
    schedule.now = 4.0
    schedule.checks.repaired(seconds=4.0)
    assert schedule.checks.due() == 12
    assert not schedule.checks.is_repair_due()
    schedule.now = 12.0
    assert schedule.checks.is_repair_due()


def test_after_a_failed_check_no_check_is_due_before_the_wait_is_over(schedule):
    schedule.engine.lost = 3
    assert schedule.checks.failed() == 5
    assert schedule.checks.due() == 5
