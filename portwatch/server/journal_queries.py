"""Journal queries on behalf of HTTP requests: a few at a time, with a time limit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from portwatch.outputs.journal import Reader
from portwatch.server.threads import Limiter

T = TypeVar("T")

_MAX_CONCURRENT = 2
_TIME_LIMIT = 5.0
"""Seconds for one query. It may scan millions of events while the next one waits."""


class JournalQueries:
    """Runs queries in threads of their own, so that a slow query delays only other queries."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._limiter = Limiter(_MAX_CONCURRENT)

    async def ask(self, query: Callable[[Reader], T]) -> T:
        """Return the result of a query. Raise JournalError, also when it exceeds the time limit."""
        return await self._limiter.run(lambda: query(Reader(self._journal, time_limit=_TIME_LIMIT)))
