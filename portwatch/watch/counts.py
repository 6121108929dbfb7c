"""What a hub had to repair."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counts:
    """What had to be repaired, for whoever wants to know how far to trust the rest."""

    lost: int = 0
    recursion_misses: int = 0
    """Times that the kernel left a program out, of which each may have been about something, or not."""
    subscriber_drops: int = 0
    """Events that subscribers were too slow for, and were told the number of."""
    reconciliations: Counter[str] = field(default_factory=Counter)
    drift: Counter[str] = field(default_factory=Counter)
    """Ports that a check found open, or closed, and no record had told of."""
