"""Filters by cgroup and by container."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from portwatch.filters.filter import Filter


class HasCgroup(Protocol):
    """An object, such as a process, that has a cgroup and a container. A missing or unknown value is None."""

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
    """The cgroup and container filters of a scope."""

    cgroup: Filter[str] = Filter()
    container: Filter[str] = Filter()

    def may_pass(self, members: Collection[HasCgroup]) -> bool:
        """Return True if a socket of these processes may pass. If there is one process, the answer is exact."""
        return _may_pass(self.cgroup, [member.cgroup for member in members], is_in_cgroup) and _may_pass(
            self.container, [member.container for member in members], is_in_container
        )


def _may_pass(
    condition: Filter[str], values: list[str | None], matches: Callable[[str | None, str], bool]
) -> bool:
    def matches_any(patterns: tuple[str, ...], value: str | None) -> bool:
        return any(matches(value, pattern) for pattern in patterns)

    if condition.include and not any(matches_any(condition.include, value) for value in values):
        return False
    # A socket is excluded only if all its processes are excluded. Any other process may keep the socket open
    # after the excluded processes have closed it.
    return not values or not all(matches_any(condition.exclude, value) for value in values)
