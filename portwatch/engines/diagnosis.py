"""What an engine may need of this machine, as single facts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from portwatch.errors import EngineUnavailable

State = Literal["ok", "limited", "not ok"]
Check = Callable[[], tuple[State, str, str | None]]
"""Returns the state, what was found, and what would help."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that an engine may need, as it is on this machine."""

    name: str
    state: State
    text: str
    help: str | None = None
    """What would help."""


def run_checks(checks: Mapping[str, Check]) -> Iterator[Fact]:
    """Yield a fact for each check. A check that raises is a fact, too: what it looked for is not usable."""
    for name, check in checks.items():
        try:
            yield Fact(name, *check())
        except (OSError, EngineUnavailable) as error:
            yield Fact(name, "not ok", str(error))
