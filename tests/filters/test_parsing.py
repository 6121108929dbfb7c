"""Parsers for option values, configuration values and HTTP parameters."""

import time

import pytest

from portwatch.filters.parsing import one_of, parse_time, port_range

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
    ("text", "bounds"), [("80", (80, 80)), ("8000-8999", (8000, 8999)), ("1-65535", (1, 65_535))]
)
def test_port_range_returns_the_first_and_the_last_port(text, bounds):
    assert port_range(text) == bounds


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("http", "is not a port or a range"),
        ("", "is not a port or a range"),
        ("-80", "is not a port or a range"),
        ("0", "is outside 1-65535"),
        ("1-65536", "is outside 1-65535"),
        ("90-80", "is reversed"),
    ],
)
def test_port_range_says_why_a_text_is_invalid(text, reason):
    with pytest.raises(ValueError, match=reason):
        port_range(text)


def test_one_of_accepts_only_the_allowed_values():
    parse = one_of(("tcp", "udp"))
    assert parse("udp") == "udp"
    with pytest.raises(ValueError, match="'sctp' is not one of tcp, udp"):
        parse("sctp")


@pytest.mark.parametrize(
    ("text", "seconds"), [("0s", 0), ("30s", 30), ("10m", 600), ("2h", 7200), ("3d", 259_200)]
)
def test_parse_time_subtracts_a_duration_from_now(text, seconds):
    assert parse_time(text, NOW) == NOW - seconds * SECOND


@pytest.mark.usefixtures("_zone")
@pytest.mark.parametrize(("hour", "minute"), [(0, 0), (5, 18), (5, 19), (23, 59)])
def test_parse_time_reads_a_time_of_day_as_the_most_recent_one_in_local_time(hour, minute):
    result = parse_time(f"{hour}:{minute:02}", NOW)
    assert time.localtime(result // SECOND)[3:6] == (hour, minute, 0)
    assert NOW - 86_400 * SECOND < result <= NOW


@pytest.mark.usefixtures("_zone")
def test_parse_time_reads_a_time_without_a_zone_as_local_time():
    assert parse_time("2026-11-21", NOW) == local(2026, 11, 21)
    assert parse_time("2026-11-21T03:57:02", NOW) == local(2026, 11, 21, 3, 57, 2)


@pytest.mark.usefixtures("_zone")
def test_parse_time_accepts_a_zone_and_keeps_nanoseconds():
    assert parse_time("2026-11-21T05:18:26.586493133Z", NOW) == NOW
    assert parse_time("2026-11-21T06:18:26.5+01:00", NOW) == NOW // SECOND * SECOND + 500_000_000


def test_parse_time_accepts_any_year():
    assert parse_time("9999-12-31T23:59:59Z", NOW) == 253_402_300_799 * SECOND
    assert parse_time("0001-01-02T00:00:00Z", NOW) < 0


@pytest.mark.parametrize("text", ["soon", "", "25:00", "10", "2026-13-01"])
def test_parse_time_lists_the_accepted_forms_if_a_text_is_invalid(text):
    with pytest.raises(ValueError, match=f"'{text}' is not a time: try 10m"):
        parse_time(text, NOW)
