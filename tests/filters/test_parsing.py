"""What people write."""

import time

import pytest

from portwatch.filters.parsing import moment

SECOND = 1_000_000_000
NOW = 1_795_238_306_586_493_133  # 2026-11-21T05:18:26 UTC


@pytest.fixture(params=["UTC", "America/New_York", "Asia/Kathmandu"])
def _zone(request, monkeypatch):
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def local(*fields):
    return int(time.mktime((*fields, *(0,) * (8 - len(fields)), -1))) * SECOND


@pytest.mark.parametrize(
    ("text", "seconds"), [("0s", 0), ("30s", 30), ("10m", 600), ("2h", 7200), ("3d", 259_200)]
)
def test_a_moment_is_so_long_ago(text, seconds):
    assert moment(text, NOW) == NOW - seconds * SECOND


def test_a_moment_may_be_longer_ago_than_there_was_time():
    assert moment("9999-12-31T23:59:59Z", NOW) == 253_402_300_799 * SECOND
    assert moment("0001-01-02T00:00:00Z", NOW) < 0
