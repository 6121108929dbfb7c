"""The journal, as requests may ask it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from portwatch.outputs.journal import Reader
from portwatch.server.threads import Limiter

T = TypeVar("T")

_AT_ONCE = 2
_TIME_LIMIT = 5.0
"""Seconds for one question: it may be about millions of events, and the next one waits."""


class JournalQueries:
    """Answers in threads that it shares with nobody, so that only such questions wait for such questions."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._limiter = Limiter(_AT_ONCE)

    async def ask(self, question: Callable[[Reader], T]) -> T:
        """What a reader has to say. Raises JournalError, also where that takes too long."""
        return await self._limiter.run(lambda: question(Reader(self._journal, time_limit=_TIME_LIMIT)))
