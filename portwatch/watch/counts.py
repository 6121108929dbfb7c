"""Counters of losses and repairs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counts:
    """How often events were lost, and how often the table had to be checked or corrected."""

    lost: int = 0
    """Records that the engine dropped."""
    recursion_misses: int = 0
    """Times that the kernel skipped one of the BPF programs. Not every skip lost a record."""
    subscriber_drops: int = 0
    """Events that slow subscribers missed. Each got a gap with the number."""
    reconciliations: Counter[str] = field(default_factory=Counter)
    """Checks of the table against the kernel, by reason."""
    drift: Counter[str] = field(default_factory=Counter)
    """Opens and closes that only a check found, by kind of event."""
