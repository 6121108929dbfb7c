"""Filter by cgroup and by container."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from portwatch.filters.filter import Filter


class HasCgroup(Protocol):
    """A process, or a cgroup by itself. None means unknown or none."""

    @property
    def cgroup(self) -> str | None:
        """The path of the cgroup from the root."""

    @property
    def container(self) -> str | None:
        """The id of the container."""


def is_in_cgroup(path: str | None, ancestor: str) -> bool:
    """Return True if the cgroup at `path` is `ancestor` or below it."""
    return path is not None and f"{path.rstrip('/')}/".startswith(f"{ancestor.rstrip('/')}/")


def is_in_container(container: str | None, prefix: str) -> bool:
    """Return True if the container's id starts with `prefix`."""
    return container is not None and container.startswith(prefix)


@dataclass(frozen=True, slots=True)
class CgroupFilter:
    """The cgroups and the containers of a scope."""

    cgroup: Filter[str] = Filter()
    container: Filter[str] = Filter()

    def may_pass(self, members: Collection[HasCgroup]) -> bool:
        """Return True if a socket that concerns these processes may pass; for one process, whether it does."""
        return _may_pass(self.cgroup, [one.cgroup for one in members], is_in_cgroup) and _may_pass(
            self.container, [one.container for one in members], is_in_container
        )


def _may_pass(only: Filter[str], values: list[str | None], matches: Callable[[str | None, str], bool]) -> bool:
    if only.include and not any(matches(value, one) for value in values for one in only.include):
        return False
    # Excluded only if every process is: one that is not may hold the socket without the others.
    return not values or not all(any(matches(value, one) for one in only.exclude) for value in values)
