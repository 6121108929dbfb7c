"""What a request asks for, out of the text behind its `?`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from difflib import get_close_matches
from typing import Any

from aiohttp import web
from multidict import MultiMapping

from portwatch.filters.filter import Filter
from portwatch.filters.parsing import EXPOSURES, PROTOCOLS, one_of, port_range
from portwatch.filters.scope import Scope
from portwatch.linux import netns
from portwatch.server.responses import refusal

LARGEST_NUMBER = 2**63 - 1
_PID_MAX = 1 << 22


def _namespace(text: str) -> int:
    """An inode or a name. No path: a request must not have us open files."""
    if text == "self":
        return netns.own().inode
    if text.isascii() and text.isdecimal():
        return int(text)
    inode = netns.named(text) if "/" not in text else None
    if inode is None:
        raise refusal(web.HTTPNotFound, f"no network namespace is called {text!r}")
    return inode


def port(text: str) -> int:
    """Return a port. Raise ValueError."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 0 < int(text) <= 65_535):
        raise ValueError(f"{text!r} is not a port (1-65535)")
    return int(text)


def pid(text: str) -> int:
    """Return a pid. Raise ValueError."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 7 and 0 < int(text) <= _PID_MAX):
        raise ValueError(f"{text!r} is not a pid")
    return int(text)


def some(text: str) -> str:
    """Any text, if there is one. Raises ValueError."""
    if not text:
        raise ValueError("a value is missing")
    return text


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
    """Raises HTTPBadRequest for a name that means nothing here, since it narrows nothing as somebody hoped."""
    for name in query:
        if name not in known:
            meant = get_close_matches(name, known, 1)
            raise refusal(
                web.HTTPBadRequest,
                f"there is no parameter {name!r} here",
                f"did you mean {meant[0]!r}?" if meant else f"there are: {', '.join(sorted(known))}",
            )


def scope_of(query: MultiMapping[str]) -> Scope:
    """The scope that these parameters describe: as the options of the same names do."""
    return Scope(
        **{
            field: Filter(values(query, field, parse), values(query, f"not_{field}", parse))
            for field, parse in _SCOPE.items()
        }
    )


def values(query: MultiMapping[str], name: str, parse: Callable[[str], Any]) -> tuple[Any, ...]:
    """Everything that is given by that name, several times or between commas."""
    try:
        return tuple(parse(part) for text in query.getall(name, ()) for part in text.split(","))
    except ValueError as error:
        raise refusal(web.HTTPBadRequest, f"{name}: {error}") from None


def number(
    query: MultiMapping[str], name: str, default: int | None = None, least: int = 0, most: int = LARGEST_NUMBER
) -> int | None:
    """A whole number within bounds, or `default` where none is given."""
    texts = query.getall(name, ())
    if not texts:
        return default
    text = texts[-1]
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(most)) and least <= int(text) <= most):
        raise refusal(web.HTTPBadRequest, f"{name}: {text!r} is no number from {least} to {most}")
    return int(text)
