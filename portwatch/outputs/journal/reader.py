"""Queries of a journal, which work even while this or another process writes to it."""

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
from portwatch.outputs.journal.schema import check_is_journal, companions, connect, is_damaged

_LOCK_TIMEOUT = 5.0
"""Seconds to wait for another connection's lock."""
_PROGRESS_STEPS = 10_000
"""SQLite instructions between two checks of the time limit. They take about a millisecond."""
_BATCH = 500
"""Maximum rows of one SQL query. A long read transaction would keep the writer from truncating its WAL."""
_LARGEST = 2**63 - 1
"""The largest integer that SQLite can store."""


class Reader:
    """Reads the events of a journal, as the JSON lines that were written.

    Any number of threads may share a reader. Every method raises JournalError if the journal is missing or
    cannot be read.
    """

    def __init__(self, path: Path, time_limit: float | None = None) -> None:
        """Queries that take longer than `time_limit` seconds raise JournalError."""
        self._path = path
        self._time_limit = time_limit
        check_is_journal(path)

    def has(self, seq: int) -> bool:
        """Return True if the journal has the event with this seq."""
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
        """Return events between two seqs (both exclusive) and two times (both inclusive), ordered by seq.

        An event must match every argument that is given. If an argument has several values, one of them must
        match. A process pattern matches the acting process or the opener. A gap matches every port and process.
        """
        condition, values = _condition(ports, process, kind)
        with self._connected() as db:
            first = max([_clamped(after, -1) + 1, *_seq_at_time(db, "min", ">=", since)])
            last = min([_clamped(before, _LARGEST) - 1, *_seq_at_time(db, "max", "<=", until)])
            # The unary plus keeps SQLite from using the index on time, which would force it to sort by seq.
            query = (  # built only from literals in this module
                "SELECT seq, line FROM events WHERE seq BETWEEN ? AND ? AND +time BETWEEN ? AND ?"  # noqa: S608
                f"{condition} ORDER BY seq {'DESC' if newest_first else 'ASC'} LIMIT ?"
            )
            times = _clamped(since, 0), _clamped(until, _LARGEST)
            remaining = _LARGEST if limit is None else limit
            while remaining > 0:
                count = min(remaining, _BATCH)
                rows = db.execute(query, (first, last, *times, *values, count)).fetchall()
                for _, line in rows:
                    yield self._checked(line)
                if len(rows) < count:
                    return
                remaining -= count
                if newest_first:
                    last = rows[-1][0] - 1
                else:
                    first = rows[-1][0] + 1

    def event(self, line: str) -> Event:
        """Return the event in a line. Raise JournalError if the line is not an event."""
        try:
            return Event.from_dict(json.loads(line))
        except (ValueError, TypeError, LookupError, AttributeError):
            raise self._damaged_at(line) from None

    def _checked(self, line: Any) -> str:
        """Return the line if it is a JSON object. Raise JournalError otherwise."""
        with suppress(ValueError, TypeError):
            if isinstance(line, str) and isinstance(json.loads(line), dict):
                return line
        raise self._damaged_at(line)

    def _damaged_at(self, line: Any) -> JournalError:
        return JournalError(f"the journal {self._path} is damaged: it contains {str(line)[:80]!r}")

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        check_is_journal(self._path)
        try:
            with closing(connect(self._path, self._mode(), _LOCK_TIMEOUT)) as db:
                db.create_function("matches", 2, _matches, deterministic=True)
                if self._time_limit is not None:
                    deadline = time.monotonic() + self._time_limit
                    db.set_progress_handler(lambda: time.monotonic() > deadline, _PROGRESS_STEPS)
                yield db
        except sqlite3.Error as error:
            if str(error) == "interrupted":
                raise JournalError(
                    f"the query of the journal {self._path} took longer than {self._time_limit:g} s: "
                    "narrow it, for example to a time range or one kind of event"
                ) from None
            hint = (
                f"; `sqlite3 {self._path} .recover` prints what can be recovered; "
                "the daemon starts a new journal"
                if is_damaged(error)
                else ""
            )
            raise JournalError(f"the journal {self._path} cannot be read: {error}{hint}") from None

    def _mode(self) -> str:
        """Return the mode in which to open the database.

        It is read-write if possible, so that the last connection to close can remove the WAL. In a read-only
        directory without a WAL, the database is opened as immutable, which needs no files beside it.
        """
        has_wal = any(file.exists() for file in companions(self._path))
        is_read_only = not has_wal and not os.access(self._path.parent, os.W_OK)
        return "mode=ro&immutable=1" if is_read_only else "mode=rw"


def _condition(
    ports: tuple[PortRange, ...], process: tuple[str, ...], kind: tuple[EventKind, ...]
) -> tuple[str, list[Any]]:
    """Return the filters as an SQL condition, and the values for its placeholders."""
    filters = [
        ("kind = 'gap' OR port BETWEEN ? AND ?", ports),
        ("kind = 'gap' OR matches(process, ?) OR matches(opener, ?)", [(name, name) for name in process]),
        ("kind = ?", [(name,) for name in kind]),
    ]
    used = [
        (" OR ".join([test] * len(alternatives)), alternatives)
        for test, alternatives in filters
        if alternatives
    ]
    return (
        "".join(f" AND ({test})" for test, _ in used),
        [value for _, alternatives in used for values in alternatives for value in values],
    )


def _seq_at_time(db: sqlite3.Connection, function: str, operator: str, time: int | None) -> list[int]:
    """Return a list with the first seq since a time (min, >=) or the last seq until a time (max, <=).

    If there is no such event, the list has a seq that no event can match. If `time` is None, the list is empty.
    """
    if time is None:
        return []
    query = f"SELECT {function}(seq) FROM events WHERE time {operator} ?"  # noqa: S608  # only literals
    (seq,) = db.execute(query, (_clamped(time, 0),)).fetchone()
    return [(_LARGEST if function == "min" else -1) if seq is None else seq]


def _matches(name: str | None, pattern: str) -> bool:
    return name is not None and fnmatchcase(name, pattern)


def _clamped(number: int | None, default: int) -> int:
    """Return a number within SQLite's range, or a default for None."""
    return default if number is None else max(-1, min(number, _LARGEST))
