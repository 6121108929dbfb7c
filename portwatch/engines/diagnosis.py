"""Facts about this machine that engines depend on, each found by one check."""

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
    """What would improve the state."""


Check = Callable[[], Finding]


@dataclass(frozen=True, slots=True)
class Fact:
    """A finding and the name of its check."""

    name: str
    state: State
    text: str
    help: str | None = None


def run_checks(checks: Mapping[str, Check]) -> Iterator[Fact]:
    """Yield a fact for each check. A check that raises counts as "not ok", with the error as its text."""
    for name, check in checks.items():
        try:
            yield Fact(name, *check())
        except (OSError, EngineUnavailable) as error:
            yield Fact(name, "not ok", str(error))
