"""The database of a journal: open or create it, write to it, and keep it within the age and size limits."""

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
    check_is_journal,
    companions,
    connect,
    is_damaged,
    transaction,
)

_MAX_WAL_BYTES = 8 * 2**20
_TRIM_ROWS = 1000
_TRIM_PAGES = 250
"""Limits on the rows deleted and pages freed in one transaction. New events wait until the transaction ends."""
_ROWS_PER_PAGE = 8
_LOCK_TIMEOUT = 0.1
"""Seconds to wait for another connection's lock before the write fails and is retried."""


def check_writable(path: Path) -> None:
    """Raise JournalError if an existing file is not a journal or is not writable. Change nothing."""
    if _has_content(path):
        check_is_journal(path)
        if not os.access(path, os.R_OK | os.W_OK):
            raise JournalError(f"the journal {path} is not writable: change its owner or its mode")


class Store:
    """A journal's database, open for writing.

    The caller must hold the journal's lock and must have called `check_writable`. Methods raise
    sqlite3.DatabaseError and OSError.
    """

    def __init__(self, path: Path, max_age: float, max_bytes: int) -> None:
        self._path = path
        self._wal = companions(path)[0]
        self._max_age = int(max_age * 1_000_000_000)
        self._max_bytes = max_bytes
        self._max_wal_bytes = min(max_bytes // 4, _MAX_WAL_BYTES)
        max_pages = (max_bytes - self._max_wal_bytes) // PAGE
        # New rows reuse free pages. Without free pages, each write would grow the file, and each trim would
        # have to move pages.
        self._max_free = max_pages // 8
        self._max_used = max_pages - self._max_free
        self._db, self.last_seq = self._open()
        """The newest seq when the journal was opened.

        If the journal was damaged and has been renamed, this is the newest seq of the damaged journal.
        """
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
            db.execute("PRAGMA synchronous = FULL")  # so that a commit survives a power failure
            db.execute("PRAGMA wal_autocheckpoint = 0")  # _checkpoint does it and checks the result
            (last_seq,) = db.execute("SELECT max(seq) FROM events").fetchone()
        except BaseException:
            db.close()
            raise
        return db, last_seq

    def close(self) -> None:
        """Close the database. SQLite deletes the -wal and -shm files unless another connection is open."""
        self._db.close()

    def is_in_place(self) -> bool:
        """Return False if the file was deleted or replaced."""
        try:
            return self._path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def write(self, rows: Sequence[Row]) -> bool:
        """Write all rows durably or none of them, then trim. Return True if there may be more to trim.

        A row whose seq already exists is ignored.
        """
        with transaction(self._db):
            self._db.executemany("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            has_trimmed = self._trim()
        self._checkpoint()
        return has_trimmed

    def _trim(self) -> bool:
        """Delete some rows above the limits and free some pages. Return True if there was anything to do."""
        deleted = self._delete("WHERE time < ? ORDER BY time", time.time_ns() - self._max_age)
        excess = self._number("page_count") - self._number("freelist_count") - self._max_used
        if excess > 0:
            deleted += self._delete("WHERE seq > ? ORDER BY seq", -1, excess * _ROWS_PER_PAGE)
        spare = self._number("freelist_count") - self._max_free
        if spare > 0:
            self._db.execute(f"PRAGMA incremental_vacuum({min(spare, _TRIM_PAGES)})").fetchall()
        return deleted > 0 or spare > 0

    def _delete(self, condition: str, bound: int, count: int = _TRIM_ROWS) -> int:
        # `condition` is always a literal string in _trim.
        chosen = f"SELECT seq FROM events {condition} LIMIT ?"  # noqa: S608
        query = f"DELETE FROM events WHERE seq IN ({chosen})"  # noqa: S608
        return self._db.execute(query, (bound, min(count, _TRIM_ROWS))).rowcount

    def _number(self, pragma: str) -> int:
        (number,) = self._db.execute(f"PRAGMA {pragma}").fetchone()
        assert isinstance(number, int)
        return number

    def _checkpoint(self) -> None:
        """Truncate the WAL if it has grown.

        Raise OperationalError if a reader prevents this and the WAL exceeds the journal's size limit.
        """
        if self._wal_bytes() < self._max_wal_bytes // 2:
            return
        (is_blocked, _, _) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_blocked and self._wal_bytes() > self._max_bytes:
            raise sqlite3.OperationalError(
                "another program's long read transaction keeps the WAL from shrinking"
            )

    def _wal_bytes(self) -> int:
        try:
            return self._wal.stat().st_size
        except FileNotFoundError:
            return 0


def _has_content(path: Path) -> bool:
    return path.exists() and (not path.is_file() or path.stat().st_size > 0)


def _create(path: Path) -> None:
    """Create a journal. The file appears under its name only when it is complete."""
    new = path.with_name(path.name + "-new")
    try:
        _remove(new)  # a start that was killed may have left the file; the lock is held, so it is not in use
        os.close(os.open(new, os.O_CREAT | os.O_EXCL, 0o600))
        with closing(connect(new, "mode=rw", _LOCK_TIMEOUT)) as db:
            db.executescript(SCHEMA)
        os.replace(new, path)
    except BaseException:
        _remove(new)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)  # to make the rename durable
    finally:
        os.close(directory)


def _remove(path: Path) -> None:
    for file in (path, *companions(path)):
        file.unlink(missing_ok=True)
