"""Where processes live, as far as somebody wants to hear of them: in which cgroups and containers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from portwatch.only import Only


class Home(Protocol):
    """Of a process, or of whoever lives in a cgroup; None for what is not known, or not there."""

    @property
    def cgroup(self) -> str | None:
        """Its path, from the root on."""

    @property
    def container(self) -> str | None:
        """Its id."""


def is_in_cgroup(path: str | None, wanted: str) -> bool:
    """Whether it is that one, or below it."""
    return path is not None and f"{path.rstrip('/')}/".startswith(f"{wanted.rstrip('/')}/")


def is_in_container(container: str | None, prefix: str) -> bool:
    """Whether its id begins so."""
    return container is not None and container.startswith(prefix)


@dataclass(frozen=True, slots=True)
class Homes:
    """Which are wanted, of both kinds."""

    cgroup: Only[str] = Only()
    container: Only[str] = Only()

    def may_hold(self, homes: Collection[Home]) -> bool:
        """Whether something that these have between them can be wanted; of a single one, whether it is."""
        return _may_hold(self.cgroup, [home.cgroup for home in homes], is_in_cgroup) and _may_hold(
            self.container, [home.container for home in homes], is_in_container
        )


def _may_hold(only: Only[str], values: list[str | None], matches: Callable[[str | None, str], bool]) -> bool:
    if only.wanted and not any(matches(value, one) for value in values for one in only.wanted):
        return False
    # What some of them have that is unwanted, others may have by themselves.
    return not values or not all(any(matches(value, one) for one in only.unwanted) for value in values)
