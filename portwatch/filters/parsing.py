"""Parsers for option values, configuration values and HTTP parameters. They raise ValueError for bad text."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from portwatch.filters.scope import PortRange


def port_range(text: str) -> PortRange:
    """Parse a port or a range of ports: `80` or `8000-8999`."""
    first, dash, last = text.partition("-")
    try:
        bounds = int(first), int(last if dash else first)
    except ValueError:
        raise ValueError(f"{text!r} is not a port or a range of ports: try 8080 or 8000-8999") from None
    if not all(0 < port <= 65_535 for port in bounds):
        raise ValueError(f"{text!r} is outside 1-65535")
    if bounds[0] > bounds[1]:
        raise ValueError(f"{text!r} is reversed: write the lower port first")
    return bounds


def one_of(allowed: tuple[str, ...]) -> Callable[[str], str]:
    """Return a parser that accepts only these values."""

    def check(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"{text!r} is not one of {', '.join(allowed)}")
        return text

    return check


_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_AGO = re.compile(r"([0-9]+)([smhd])")
_TIME_OF_DAY = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])")
_FRACTION = re.compile(r"\.([0-9]{1,9})")
_SECOND = 1_000_000_000


def parse_time(text: str, now: int) -> int:
    """Parse a point in time. Return nanoseconds since the epoch.

    `10m` means ten minutes before `now`. `14:30` means the most recent 14:30. Any other text must be ISO 8601.
    Times without a zone are local.
    """
    if ago := _AGO.fullmatch(text):
        return now - int(ago[1]) * _UNITS[ago[2]] * _SECOND
    if time_of_day := _TIME_OF_DAY.fullmatch(text):
        return _most_recent(int(time_of_day[1]), int(time_of_day[2]), now)
    from datetime import datetime  # 2 ms to import, needed only for dates

    fraction = _FRACTION.search(text)
    # The times of events end in Z and have nanoseconds. Python 3.10 can parse neither the Z nor nanoseconds.
    whole = _FRACTION.sub("", text, count=1).replace("Z", "+00:00")
    try:
        seconds = int(datetime.fromisoformat(whole).timestamp())
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is not a time: try 10m, 2h, 3d, 14:30, 2026-11-21 or 2026-11-21T03:57:02Z"
        ) from None
    return seconds * _SECOND + (int(fraction[1].ljust(9, "0")) if fraction else 0)


def _most_recent(hour: int, minute: int, now: int) -> int:
    today = time.localtime(now // _SECOND)
    for days in (0, 1):
        day = today.tm_mday - days  # for mktime, day 0 is the last day of the previous month
        result = int(time.mktime((today.tm_year, today.tm_mon, day, hour, minute, 0, 0, 0, -1))) * _SECOND
        if result <= now:
            break
    return result
