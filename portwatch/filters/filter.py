"""One field of a scope: which values to include and which to exclude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Filter(Generic[T]):
    """Values to include and values to exclude. An empty `include` includes everything."""

    include: tuple[T, ...] = ()
    exclude: tuple[T, ...] = ()
