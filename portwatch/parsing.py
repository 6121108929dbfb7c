"""What people write for ports, protocols and the like, wherever they write it."""

from __future__ import annotations

from collections.abc import Callable

from portwatch.scope import PortRange

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
