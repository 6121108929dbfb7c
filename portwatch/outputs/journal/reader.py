"""Reads a journal, also while it is written, here or by another process."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from portwatch.errors import JournalError
from portwatch.event import Event, EventKind
from portwatch.filters.scope import PortRange
from portwatch.outputs.journal.schema import check_ours, companions, connect, is_damaged

_PATIENCE = 5.0
_STEPS = 10_000
"""Of SQLite's machine between two looks at the clock: a millisecond or so."""
_AT_ONCE = 500
"""Rows of one query: between two queries nothing keeps the writer from shrinking its WAL."""
_LAST = 2**63 - 1
"""The largest number that SQLite knows."""


class Reader:
    """The events that a journal holds, as the JSON lines that were stored.

    Any number of threads may ask one reader. Everything raises JournalError where there is no
    journal, or none that can be read.
    """

    def __init__(self, path: Path, time_limit: float | None = None) -> None:
        """A question that takes longer than `time_limit` seconds is not answered."""
        self._path = path
        self._time_limit = time_limit
        check_ours(path)

    def has(self, seq: int) -> bool:
        """Whether exactly this event is there."""
        with self._connected() as db:
            return db.execute("SELECT 1 FROM events WHERE seq = ?", (seq,)).fetchone() is not None

    def events(
        self,
        *,
        after: int | None = None,
        before: int | None = None,
        since: int | None = None,
        until: int | None = None,
        ports: tuple[PortRange, ...] = (),
        process: tuple[str, ...] = (),
        kind: tuple[EventKind, ...] = (),
        limit: int | None = None,
        newest_first: bool = False,
    ) -> Iterator[str]:
        """The events between two seqs (both exclusive) and two times (both inclusive), by seq.

        As in a Scope different arguments narrow, several values of one widen, a process fits by its own
        name or its opener's, and a gap fits every port and process.
        """
        condition, values = _condition(ports, process, kind)
        with self._connected() as db:
            first = max([_bounded(after, -1) + 1, *_seqs(db, "min", "time >= ?", since)])
            last = min([_bounded(before, _LAST) - 1, *_seqs(db, "max", "time <= ?", until)])
            # The plus keeps SQLite from the index on time, by which it would have to sort.
            query = (  # made of nothing that anybody else said
                "SELECT seq, line FROM events WHERE seq BETWEEN ? AND ? AND +time BETWEEN ? AND ?"  # noqa: S608
                f"{condition} ORDER BY seq {'DESC' if newest_first else 'ASC'} LIMIT ?"
            )
            times = _bounded(since, 0), _bounded(until, _LAST)
            left = _LAST if limit is None else limit
            while left > 0:
                count = min(left, _AT_ONCE)
                rows = db.execute(query, (first, last, *times, *values, count)).fetchall()
                for _, line in rows:
                    yield self._sound(line)
                if len(rows) < count:
                    return
                left -= count
                if newest_first:
                    last = rows[-1][0] - 1
                else:
                    first = rows[-1][0] + 1

    def event(self, line: str) -> Event:
        """The event that a line tells of."""
        try:
            return Event.from_dict(json.loads(line))
        except (ValueError, TypeError, LookupError, AttributeError):
            raise self._damaged_at(line) from None

    def _sound(self, line: Any) -> str:
        with suppress(ValueError, TypeError):
            if isinstance(line, str) and isinstance(json.loads(line), dict):
                return line
        raise self._damaged_at(line)

    def _damaged_at(self, line: Any) -> JournalError:
        return JournalError(f"the journal {self._path} is damaged: it holds {str(line)[:80]!r}")

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        check_ours(self._path)
        try:
            with closing(connect(self._path, self._how(), _PATIENCE)) as db:
                db.create_function("fits", 2, _fits, deterministic=True)
                if self._time_limit is not None:
                    end = time.monotonic() + self._time_limit
                    db.set_progress_handler(lambda: time.monotonic() > end, _STEPS)
                yield db
        except sqlite3.Error as error:
            if str(error) == "interrupted":
                raise JournalError(
                    f"the journal {self._path} has no answer within {self._time_limit:g} s: ask for less, "
                    "such as since when, or one kind"
                ) from None
            help_ = (
                "; `sqlite3 FILE .recover` may save the rest, and portwatch begins a new one when it writes"
                if is_damaged(error)
                else ""
            )
            raise JournalError(f"the journal {self._path} cannot be read: {error}{help_}") from None

    def _how(self) -> str:
        """Able to write, for whoever closes a WAL database last tidies up; or, where nobody can, at rest."""
        at_rest = not any(one.exists() for one in companions(self._path))
        return "mode=ro&immutable=1" if at_rest and not os.access(self._path.parent, os.W_OK) else "mode=rw"


def _condition(
    ports: tuple[PortRange, ...], process: tuple[str, ...], kind: tuple[EventKind, ...]
) -> tuple[str, list[Any]]:
    """What narrows, as SQL, and its values."""
    every = [
        ("kind = 'gap' OR port BETWEEN ? AND ?", ports),
        ("kind = 'gap' OR fits(process, ?) OR fits(opener, ?)", [(one, one) for one in process]),
        ("kind = ?", [(one,) for one in kind]),
    ]
    wanted = [(" OR ".join([fits] * len(given)), given) for fits, given in every if given]
    return (
        "".join(f" AND ({any_fits})" for any_fits, _ in wanted),
        [value for _, given in wanted for values in given for value in values],
    )


def _seqs(db: sqlite3.Connection, which: str, fits: str, time: int | None) -> list[int]:
    """The first or the last seq of a time, if one is asked for; one beyond all where there is none."""
    if time is None:
        return []
    (seq,) = db.execute(f"SELECT {which}(seq) FROM events WHERE {fits}", (_bounded(time, 0),)).fetchone()  # noqa: S608
    return [(_LAST if which == "min" else -1) if seq is None else seq]


def _fits(name: str | None, pattern: str) -> bool:
    return name is not None and fnmatchcase(name, pattern)


def _bounded(number: int | None, otherwise: int) -> int:
    return otherwise if number is None else max(-1, min(number, _LAST))
