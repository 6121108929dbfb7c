"""The file that a journal is written to: opened or begun, and kept to its age and size."""

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
"""What is deleted and given back at most in one transaction: new events wait for it."""
_ROWS_IN_A_PAGE = 8
_PATIENCE = 0.1
"""Seconds to wait for somebody else's lock before it counts as trouble."""


def check_writable(path: Path) -> None:
    """Raises JournalError if something is there that is not ours, or not ours to write; it is not touched."""
    if _has_content(path):
        check_ours(path)
        if not os.access(path, os.R_OK | os.W_OK):
            raise JournalError(f"the journal {path} is not ours to write: change its owner or its mode")


class Store:
    """A journal's database, open for writing by the holder of its lock.

    What is there has passed `check_writable`. Raises sqlite3.OperationalError and OSError.
    """

    def __init__(self, path: Path, max_age: float, max_bytes: int) -> None:
        self._path = path
        self._wal = companions(path)[0]
        self._max_age = int(max_age * 1_000_000_000)
        self._max_bytes = max_bytes
        self._max_wal_bytes = min(max_bytes // 4, _MAX_WAL_BYTES)
        max_pages = (max_bytes - self._max_wal_bytes) // PAGE
        # Free pages take new rows, so that the file neither grows nor is moved about all the time.
        self._max_free = max_pages // 8
        self._max_used = max_pages - self._max_free
        self._db, self.last_seq = self._open()
        """The newest seq that was there when it was opened; also one of a damaged journal, set aside."""
        self._inode = path.stat().st_ino

    def _open(self) -> tuple[sqlite3.Connection, int | None]:
        broken_seq = None
        if _has_content(self._path):
            try:
                return self._connect()
            except sqlite3.DatabaseError as error:
                if not is_damaged(error):
                    raise
                broken_seq = set_aside(self._path, error)
        elif any(map(_has_content, companions(self._path))):
            set_aside(self._path, "only its WAL is there")
        _create(self._path)
        db, _ = self._connect()
        return db, broken_seq

    def _connect(self) -> tuple[sqlite3.Connection, int | None]:
        db = connect(self._path, "mode=rw", _PATIENCE)
        try:
            db.execute("PRAGMA synchronous = FULL")  # what is committed survives a loss of power
            db.execute("PRAGMA wal_autocheckpoint = 0")  # _checkpoint says when, and hears of failures
            (last_seq,) = db.execute("SELECT max(seq) FROM events").fetchone()
        except BaseException:
            db.close()
            raise
        return db, last_seq

    def close(self) -> None:
        """Leaves one file behind, unless somebody reads it."""
        self._db.close()

    def is_in_place(self) -> bool:
        """Whether what is written can be found: the file may have been deleted for its space."""
        try:
            return self._path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def write(self, rows: Sequence[Row]) -> bool:
        """Writes all rows durably, or none, and trims; whether there is more to trim.

        Writing a row again changes nothing.
        """
        with transaction(self._db):
            self._db.executemany("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            has_trimmed = self._trim()
        self._checkpoint()
        return has_trimmed

    def _trim(self) -> bool:
        """Deletes some of what is too old or too much, and gives back what is free; whether it did."""
        deleted = self._delete("WHERE time < ? ORDER BY time", time.time_ns() - self._max_age)
        excess = self._number("page_count") - self._number("freelist_count") - self._max_used
        if excess > 0:
            deleted += self._delete("WHERE seq > ? ORDER BY seq", -1, excess * _ROWS_IN_A_PAGE)
        spare = self._number("freelist_count") - self._max_free
        if spare > 0:
            self._db.execute(f"PRAGMA incremental_vacuum({min(spare, _TRIM_PAGES)})").fetchall()
        return deleted > 0 or spare > 0

    def _delete(self, which: str, bound: int, count: int = _TRIM_ROWS) -> int:
        chosen = f"SELECT seq FROM events {which} LIMIT ?"  # noqa: S608  # `which` is one of the two above
        query = f"DELETE FROM events WHERE seq IN ({chosen})"  # noqa: S608
        return self._db.execute(query, (bound, min(count, _TRIM_ROWS))).rowcount

    def _number(self, pragma: str) -> int:
        (number,) = self._db.execute(f"PRAGMA {pragma}").fetchone()
        assert isinstance(number, int)
        return number

    def _checkpoint(self) -> None:
        """Keeps the WAL small."""
        if self._wal_bytes() < self._max_wal_bytes // 2:
            return
        (is_kept, _, _) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_kept and self._wal_bytes() > self._max_bytes:
            raise sqlite3.OperationalError("a program that has read it for long keeps it from shrinking")

    def _wal_bytes(self) -> int:
        try:
            return self._wal.stat().st_size
        except FileNotFoundError:
            return 0


def _has_content(path: Path) -> bool:
    return path.exists() and (not path.is_file() or path.stat().st_size > 0)


def _create(path: Path) -> None:
    """Begins a journal, of which nobody sees less than all."""
    new = path.with_name(path.name + "-new")
    try:
        _remove(new)  # of a start that was killed: the lock is ours
        os.close(os.open(new, os.O_CREAT | os.O_EXCL, 0o600))
        with closing(connect(new, "mode=rw", _PATIENCE)) as db:
            db.executescript(SCHEMA)
        os.replace(new, path)
    except BaseException:
        _remove(new)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _remove(path: Path) -> None:
    for one in (path, *companions(path)):
        one.unlink(missing_ok=True)
