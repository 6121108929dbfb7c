"""The database of a journal: opened or created, written, and kept within its age and size."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from portwatch.errors import JournalError
from portwatch.outputs.journal.damage import set_aside
from portwatch.outputs.journal.schema import (
    PAGE,
    SCHEMA,
    Row,
    check_ours,
    companions,
    connect,
    is_damaged,
    transaction,
)

_MAX_WAL_BYTES = 8 * 2**20
_TRIM_ROWS = 1000
_TRIM_PAGES = 250
"""The most rows deleted and pages freed in one transaction: new events wait for it."""
_ROWS_PER_PAGE = 8
_LOCK_TIMEOUT = 0.1
"""Seconds to wait for another connection's lock before the write fails and is retried."""


def check_writable(path: Path) -> None:
    """Raise JournalError if the file exists and is not a journal, or not writable. Change nothing."""
    if _has_content(path):
        check_ours(path)
        if not os.access(path, os.R_OK | os.W_OK):
            raise JournalError(f"the journal {path} is not writable: change its owner or its mode")


class Store:
    """A journal's database, open for writing.

    The caller holds the journal's lock, and has called `check_writable`. Methods raise
    sqlite3.DatabaseError and OSError.
    """

    def __init__(self, path: Path, max_age: float, max_bytes: int) -> None:
        self._path = path
        self._wal = companions(path)[0]
        self._max_age = int(max_age * 1_000_000_000)
        self._max_bytes = max_bytes
        self._max_wal_bytes = min(max_bytes // 4, _MAX_WAL_BYTES)
        max_pages = (max_bytes - self._max_wal_bytes) // PAGE
        # New rows reuse free pages. Without them, each write would grow the file and each trim move pages.
        self._max_free = max_pages // 8
        self._max_used = max_pages - self._max_free
        self._db, self.last_seq = self._open()
        """The newest seq at the time of opening, also if the journal was damaged and has been renamed."""
        self._inode = path.stat().st_ino

    def _open(self) -> tuple[sqlite3.Connection, int | None]:
        damaged_seq = None
        if _has_content(self._path):
            try:
                return self._connect()
            except sqlite3.DatabaseError as error:
                if not is_damaged(error):
                    raise
                damaged_seq = set_aside(self._path, error)
        elif any(map(_has_content, companions(self._path))):
            set_aside(self._path, "only its WAL exists")
        _create(self._path)
        db, _ = self._connect()
        return db, damaged_seq

    def _connect(self) -> tuple[sqlite3.Connection, int | None]:
        db = connect(self._path, "mode=rw", _LOCK_TIMEOUT)
        try:
            db.execute("PRAGMA synchronous = FULL")  # a commit survives a power failure
            db.execute("PRAGMA wal_autocheckpoint = 0")  # _checkpoint does it, and sees failures
            (last_seq,) = db.execute("SELECT max(seq) FROM events").fetchone()
        except BaseException:
            db.close()
            raise
        return db, last_seq

    def close(self) -> None:
        """Close the database. SQLite removes its companions unless another connection is open."""
        self._db.close()

    def is_in_place(self) -> bool:
        """Return False if the file was deleted or replaced."""
        try:
            return self._path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def write(self, rows: Sequence[Row]) -> bool:
        """Write all rows durably, or none, and trim. Return True if there may be more to trim.

        Rows whose seq exists already are ignored.
        """
        with transaction(self._db):
            self._db.executemany("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            has_trimmed = self._trim()
        self._checkpoint()
        return has_trimmed

    def _trim(self) -> bool:
        """Delete some rows above the limits, and free some pages. Return True if there were any."""
        deleted = self._delete("WHERE time < ? ORDER BY time", time.time_ns() - self._max_age)
        excess = self._number("page_count") - self._number("freelist_count") - self._max_used
        if excess > 0:
            deleted += self._delete("WHERE seq > ? ORDER BY seq", -1, excess * _ROWS_PER_PAGE)
        spare = self._number("freelist_count") - self._max_free
        if spare > 0:
            self._db.execute(f"PRAGMA incremental_vacuum({min(spare, _TRIM_PAGES)})").fetchall()
        return deleted > 0 or spare > 0

    def _delete(self, condition: str, bound: int, count: int = _TRIM_ROWS) -> int:
        chosen = f"SELECT seq FROM events {condition} LIMIT ?"  # noqa: S608  # a literal of _trim
        query = f"DELETE FROM events WHERE seq IN ({chosen})"  # noqa: S608
        return self._db.execute(query, (bound, min(count, _TRIM_ROWS))).rowcount

    def _number(self, pragma: str) -> int:
        (number,) = self._db.execute(f"PRAGMA {pragma}").fetchone()
        assert isinstance(number, int)
        return number

    def _checkpoint(self) -> None:
        """Truncate the WAL when it has grown. Raise OperationalError if a reader blocks that for too long."""
        if self._wal_bytes() < self._max_wal_bytes // 2:
            return
        (is_blocked, _, _) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_blocked and self._wal_bytes() > self._max_bytes:
            raise sqlite3.OperationalError(
                "a long read transaction of another program keeps its WAL from shrinking"
            )

    def _wal_bytes(self) -> int:
        try:
            return self._wal.stat().st_size
        except FileNotFoundError:
            return 0


def _has_content(path: Path) -> bool:
    return path.exists() and (not path.is_file() or path.stat().st_size > 0)


def _create(path: Path) -> None:
    """Create a journal. It appears under its name only when it is complete."""
    new = path.with_name(path.name + "-new")
    try:
        _remove(new)  # left by a start that was killed; the lock is ours
        os.close(os.open(new, os.O_CREAT | os.O_EXCL, 0o600))
        with closing(connect(new, "mode=rw", _LOCK_TIMEOUT)) as db:
            db.executescript(SCHEMA)
        os.replace(new, path)
    except BaseException:
        _remove(new)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)  # makes the rename durable
    finally:
        os.close(directory)


def _remove(path: Path) -> None:
    for file in (path, *companions(path)):
        file.unlink(missing_ok=True)
