"""Checks of what engines depend on. Each check finds one fact about this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from portwatch.errors import EngineUnavailable

State = Literal["ok", "limited", "not ok"]


class Finding(NamedTuple):
    """The result of a check."""

    state: State
    text: str
    help: str | None = None
    """What the user can do to improve the state."""


Check = Callable[[], Finding]


@dataclass(frozen=True, slots=True)
class Fact:
    """The finding of a check, with the name of the check."""

    name: str
    state: State
    text: str
    help: str | None = None


def run_checks(checks: Mapping[str, Check]) -> Iterator[Fact]:
    """Yield one fact for each check. If a check raises an error, its fact is "not ok" with the error's text."""
    for name, check in checks.items():
        try:
            yield Fact(name, *check())
        except (OSError, EngineUnavailable) as error:
            yield Fact(name, "not ok", str(error))
