"""Journal queries on behalf of HTTP requests, limited in number and duration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from portwatch.outputs.journal import Reader
from portwatch.server.threads import Limiter

T = TypeVar("T")

_MAX_CONCURRENT = 2
_TIME_LIMIT = 5.0
"""Maximum duration of a query in seconds. A query may scan millions of events while others wait for it."""


class JournalQueries:
    """Runs each query in its own thread, so that a slow query delays other queries but nothing else."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._limiter = Limiter(_MAX_CONCURRENT)

    async def ask(self, query: Callable[[Reader], T]) -> T:
        """Return the result of a query. Raise JournalError if the query fails or exceeds the time limit."""
        return await self._limiter.run(lambda: query(Reader(self._journal, time_limit=_TIME_LIMIT)))
