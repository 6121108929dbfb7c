"""What people write for ports, protocols and the like, wherever they write it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from portwatch.filters.scope import PortRange

PROTOCOLS = ("tcp", "udp")
EXPOSURES = ("loopback", "private", "public", "all")


def port_range(text: str) -> PortRange:
    """`80` or `8000-8999`. Raises ValueError."""
    first, dash, last = text.partition("-")
    try:
        bounds = int(first), int(last if dash else first)
    except ValueError:
        raise ValueError(f"{text!r} is no port and no range such as 8000-8999") from None
    if not 0 < bounds[0] <= bounds[1] <= 65_535:
        raise ValueError(f"{text!r} is outside 1-65535, or upside down")
    return bounds


def one_of(allowed: tuple[str, ...]) -> Callable[[str], str]:
    """Accepts these. What it returns raises ValueError."""

    def check(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"{text!r} is none of {', '.join(allowed)}")
        return text

    return check


_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_AGO = re.compile(r"([0-9]+)([smhd])")
_OF_THE_DAY = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])")
_FRACTION = re.compile(r"\.([0-9]{1,9})")
_SECOND = 1_000_000_000


def moment(text: str, now: int) -> int:
    """`10m` before `now`, the last `14:30`, or a time as ISO 8601 writes it: nanoseconds since the epoch.

    Local time, unless the text names another zone. Raises ValueError.
    """
    if ago := _AGO.fullmatch(text):
        return now - int(ago[1]) * _UNITS[ago[2]] * _SECOND
    if of_the_day := _OF_THE_DAY.fullmatch(text):
        return _last(int(of_the_day[1]), int(of_the_day[2]), now)
    from datetime import datetime  # 2 ms, for those who write a date

    fraction = _FRACTION.search(text)
    # Python 3.10 knows neither Z nor nanoseconds, and events tell their time by both.
    whole = _FRACTION.sub("", text, count=1).replace("Z", "+00:00")
    try:
        seconds = int(datetime.fromisoformat(whole).timestamp())
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is no time: try 10m, 2h, 3d, 14:30, 2026-11-21 or 2026-11-21T03:57:02Z"
        ) from None
    return seconds * _SECOND + (int(fraction[1].ljust(9, "0")) if fraction else 0)


def _last(hour: int, minute: int, now: int) -> int:
    today = time.localtime(now // _SECOND)
    for days in (0, 1):
        day = today.tm_mday - days  # mktime goes on from a month to the one before
        found = int(time.mktime((today.tm_year, today.tm_mon, day, hour, minute, 0, 0, 0, -1))) * _SECOND
        if found <= now:
            break
    return found
