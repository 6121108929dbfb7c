"""Query parameters: parsers that refuse a wrong value with status 400.

The parameters of the scope are in `_SCOPE`: each has a `not_` form, and is named after an option of the CLI.
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
    """Return a port. Raise ValueError."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 0 < int(text) <= 65_535):
        raise ValueError(f"{text!r} is not a port (1-65535)")
    return int(text)


def pid(text: str) -> int:
    """Return a pid. Raise ValueError."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 7 and 0 < int(text) <= _PID_MAX):
        raise ValueError(f"{text!r} is not a pid (1-{_PID_MAX})")
    return int(text)


def some(text: str) -> str:
    """Return any text but the empty one. Raise ValueError."""
    if not text:
        raise ValueError("the value is empty")
    return text


def _namespace(text: str) -> int:
    """Return a network namespace's inode. Refuse paths: a request must not make the daemon open files."""
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
    "process": some,
    "cgroup": some,
    "container": some,
    "netns": _namespace,
}
SCOPE_NAMES = tuple(name for field in _SCOPE for name in (field, f"not_{field}"))


def only_known(query: MultiMapping[str], known: Collection[str]) -> None:
    """Raise HTTPBadRequest for an unknown parameter: if ignored, a misspelt filter would filter nothing."""
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
    """Return all values of a parameter, which may be repeated and may hold several with commas between."""
    try:
        return tuple(parse(part) for text in query.getall(name, ()) for part in text.split(","))
    except ValueError as error:
        raise refusal(web.HTTPBadRequest, f"{name}: {error}") from None


def number(
    query: MultiMapping[str], name: str, default: int | None = None, least: int = 0, most: int = LARGEST_NUMBER
) -> int | None:
    """Return an integer from `least` to `most`, or `default` if the parameter is absent."""
    texts = query.getall(name, ())
    if not texts:
        return default
    text = texts[-1]
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(most)) and least <= int(text) <= most):
        raise refusal(web.HTTPBadRequest, f"{name}: {text!r} is not a number from {least} to {most}")
    return int(text)
