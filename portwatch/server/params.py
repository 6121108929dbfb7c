"""Parsers for query parameters. A wrong value is refused with status 400.

`_SCOPE` has the parameters of a scope. Each is named after a command-line option and has a `not_` form.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from difflib import get_close_matches
from typing import Any

from aiohttp import web
from multidict import MultiMapping

from portwatch.addresses import EXPOSURES
from portwatch.filters.filter import Filter
from portwatch.filters.parsing import one_of, port_range
from portwatch.filters.scope import Scope
from portwatch.linux import netns
from portwatch.model import PROTOCOLS
from portwatch.server.responses import refusal

LARGEST_NUMBER = 2**63 - 1
_PID_MAX = 1 << 22


def port(text: str) -> int:
    """Parse a port. Raise ValueError if the text is not a port."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 0 < int(text) <= 65_535):
        raise ValueError(f"{text!r} is not a port (1-65535)")
    return int(text)


def pid(text: str) -> int:
    """Parse a pid. Raise ValueError if the text is not a pid."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 7 and 0 < int(text) <= _PID_MAX):
        raise ValueError(f"{text!r} is not a pid (1-{_PID_MAX})")
    return int(text)


def non_empty(text: str) -> str:
    """Return the text. Raise ValueError if it is empty."""
    if not text:
        raise ValueError("the value is empty")
    return text


def _namespace(text: str) -> int:
    """Return a network namespace's inode. Paths are refused: a request must not make the daemon open files."""
    if text == "self":
        return netns.own().inode
    if text.isascii() and text.isdecimal():
        return int(text)
    inode = netns.named(text) if "/" not in text else None
    if inode is None:
        raise refusal(
            web.HTTPNotFound,
            f"there is no network namespace named {text!r}",
            "use self, a name that `ip netns` lists, or the inode of /proc/PID/ns/net",
        )
    return inode


_SCOPE: dict[str, Callable[[str], Any]] = {
    "port": port_range,
    "proto": one_of(PROTOCOLS),
    "exposure": one_of(EXPOSURES),
    "process": non_empty,
    "cgroup": non_empty,
    "container": non_empty,
    "netns": _namespace,
}
SCOPE_NAMES = tuple(name for field in _SCOPE for name in (field, f"not_{field}"))


def only_known(query: MultiMapping[str], known: Collection[str]) -> None:
    """Raise HTTPBadRequest if a parameter is unknown. A misspelt filter must not be silently ignored."""
    for name in query:
        if name in known:
            continue
        if similar := get_close_matches(name, known, 1):
            detail = f"did you mean {similar[0]!r}?"
        elif known:
            detail = f"parameters are: {', '.join(sorted(known))}"
        else:
            detail = "this path takes no parameters"
        raise refusal(web.HTTPBadRequest, f"unknown parameter {name!r}", detail)


def scope_of(query: MultiMapping[str]) -> Scope:
    """Return the scope that a query describes."""
    return Scope(
        **{
            field: Filter(values(query, field, parse), values(query, f"not_{field}", parse))
            for field, parse in _SCOPE.items()
        }
    )


def values(query: MultiMapping[str], name: str, parse: Callable[[str], Any]) -> tuple[Any, ...]:
    """Return all values of a parameter. It may be repeated, and values may be separated by commas."""
    try:
        return tuple(parse(part) for text in query.getall(name, ()) for part in text.split(","))
    except ValueError as error:
        raise refusal(web.HTTPBadRequest, f"{name}: {error}") from None


def number(
    query: MultiMapping[str],
    name: str,
    default: int | None = None,
    minimum: int = 0,
    maximum: int = LARGEST_NUMBER,
) -> int | None:
    """Return an integer from `minimum` to `maximum`, or `default` if the parameter is absent."""
    texts = query.getall(name, ())
    if not texts:
        return default
    text = texts[-1]
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(maximum))
    if not (is_number and minimum <= int(text) <= maximum):
        raise refusal(web.HTTPBadRequest, f"{name}: {text!r} is not a number from {minimum} to {maximum}")
    return int(text)
