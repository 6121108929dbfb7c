"""What somebody wants of one kind of thing, and what not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Only(Generic[T]):
    """What is wanted and what is not; nothing wanted means everything."""

    wanted: tuple[T, ...] = ()
    unwanted: tuple[T, ...] = ()
