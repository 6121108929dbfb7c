"""The format of a journal: a SQLite database in WAL mode with one row for each event."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

from portwatch.errors import JournalError
from portwatch.event import Event

APPLICATION_ID = 0x70776A6C
VERSION = 1
PAGE = 4096

SCHEMA = f"""
PRAGMA page_size = {PAGE};
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    time INTEGER NOT NULL,
    kind TEXT NOT NULL,
    proto TEXT,
    port INTEGER,
    process TEXT,
    opener TEXT,
    line TEXT NOT NULL
);
CREATE INDEX events_by_time ON events (time);
PRAGMA journal_mode = WAL;
"""


class Row(NamedTuple):
    """A row: the columns that queries filter by, and the event as a JSON line."""

    seq: int
    time: int
    kind: str
    proto: str | None
    port: int | None
    process: str | None
    opener: str | None
    line: str


def row_of(event: Event) -> Row:
    """Return the row of an event."""
    opener = event.opener.process if event.opener else None
    return Row(
        event.seq,
        event.time,
        event.kind,
        event.proto,
        event.port,
        event.process,
        opener,
        event.to_json(),
    )


def companions(path: Path) -> tuple[Path, Path]:
    """Return the paths of a database's WAL and shared memory, which exist while it is in use."""
    return path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")


def connect(path: Path, mode: str, timeout: float) -> sqlite3.Connection:
    """Return a connection in autocommit mode. Threads may share it, but only one may use it at a time.

    `mode` has URI parameters for SQLite. `timeout` is the number of seconds to wait for a lock.
    """
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?{mode}",
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
        uri=True,
    )


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Run a block in a write transaction. Commit at the end, or roll back if the block raises."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # on a full disk SQLite has already rolled back
            db.execute("ROLLBACK")
        raise


def is_damaged(error: BaseException) -> bool:
    """Return True if the error means that the file is damaged.

    In that case sqlite3 raises DatabaseError itself. In all other cases it raises a subclass.
    """
    return type(error) is sqlite3.DatabaseError


def check_is_journal(path: Path) -> None:
    """Raise JournalError unless the file is a journal of this version. Neither change nor create a file.

    A truncated journal is accepted if its header is complete.
    """
    try:
        if not S_ISREG(path.stat().st_mode):
            raise JournalError(f"{path} is not a regular file: choose another file for the journal")
        # open() is not used, because closing the file would drop the POSIX locks of SQLite in this process.
        with closing(connect(path, "mode=ro&immutable=1", 0)) as db:
            db.execute("PRAGMA writable_schema = ON")  # otherwise SQLite refuses to read a truncated file
            (application_id,) = db.execute("PRAGMA application_id").fetchone()
            (version,) = db.execute("PRAGMA user_version").fetchone()
    except OSError as error:
        raise JournalError(f"the journal {path} cannot be opened: {error.strerror}") from None
    except sqlite3.OperationalError as error:
        raise JournalError(f"the journal {path} cannot be opened: {error}") from None
    except sqlite3.DatabaseError:  # the file is not a database
        application_id = version = 0
    if application_id != APPLICATION_ID:
        raise JournalError(
            f"{path} is not a portwatch journal and was not changed: choose another file, or move this one away"
        )
    if version != VERSION:
        raise JournalError(
            f"the journal {path} has version {version}, but this portwatch needs version {VERSION}: "
            "use the portwatch that wrote it, or move the file away to start a new journal"
        )
