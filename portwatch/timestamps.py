"""Conversion of nanoseconds since the epoch to ISO 8601 and back."""

from __future__ import annotations

from time import gmtime, strftime

_SECOND = 1_000_000_000


def iso_time(nanoseconds: int | None) -> str | None:
    """Convert nanoseconds since the epoch to ISO 8601 in UTC. The fraction has no trailing zeros."""
    if nanoseconds is None:
        return None
    seconds, fraction = divmod(nanoseconds, _SECOND)
    digits = f"{fraction:09}".rstrip("0")
    return strftime("%Y-%m-%dT%H:%M:%S", gmtime(seconds)) + (f".{digits}Z" if digits else "Z")


def parse_iso_time(text: str | None) -> int | None:
    """Convert a result of `iso_time` back to nanoseconds since the epoch."""
    if text is None:
        return None
    from calendar import timegm  # needed only by readers of events

    whole, _, digits = text.rstrip("Z").partition(".")
    fields = (int(part) for part in whole.replace("T", "-").replace(":", "-").split("-"))
    return timegm(tuple(fields)) * _SECOND + int(digits.ljust(9, "0"))
