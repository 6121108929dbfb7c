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
    """How often the kernel skipped a BPF program. Most skips lose no record."""
    subscriber_drops: int = 0
    """Events that slow subscribers missed. A gap told each subscriber how many."""
    reconciliations: Counter[str] = field(default_factory=Counter)
    """Checks of the table against the kernel, by reason."""
    drift: Counter[str] = field(default_factory=Counter)
    """Opens and closes that a check found but no record had reported, by kind of event."""
