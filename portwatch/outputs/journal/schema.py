"""What a journal is on disk: a SQLite database with an event a row."""

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
    """An event as it is stored: what is asked for, and the line that is told."""

    seq: int
    time: int
    kind: str
    proto: str | None
    port: int | None
    process: str | None
    opener: str | None
    line: str


def row_of(event: Event) -> Row:
    """An event as it is stored."""
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
    """What SQLite keeps beside a database in use."""
    return path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")


def connect(path: Path, how: str, timeout: float) -> sqlite3.Connection:
    """A connection that any thread may use, one at a time, and that begins no transaction by itself."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?{how}",
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
        uri=True,
    )


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All of it, or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite itself has taken back what a full disk cut off
            db.execute("ROLLBACK")
        raise


def is_damaged(error: BaseException) -> bool:
    """Whether the file itself is wrong: sqlite3 has a class of its own for everything else."""
    return type(error) is sqlite3.DatabaseError


def check_ours(path: Path) -> None:
    """Raises JournalError for what is no journal of this version; nothing is touched, nothing made beside it.

    A journal that is cut short passes, if its head is there.
    """
    try:
        if not S_ISREG(path.stat().st_mode):
            raise JournalError(f"{path} is no file: name another one as the journal")
        # Not by reading the file: closing it would drop the locks that SQLite has on it in this process.
        with closing(connect(path, "mode=ro&immutable=1", 0)) as db:
            db.execute("PRAGMA writable_schema = ON")  # or a file cut short says nothing but that it is
            (application_id,) = db.execute("PRAGMA application_id").fetchone()
            (version,) = db.execute("PRAGMA user_version").fetchone()
    except OSError as error:
        raise JournalError(f"the journal {path} cannot be opened: {error.strerror}") from None
    except sqlite3.OperationalError as error:
        raise JournalError(f"the journal {path} cannot be opened: {error}") from None
    except sqlite3.DatabaseError:  # not a database at all
        application_id = version = 0
    if application_id != APPLICATION_ID:
        raise JournalError(
            f"{path} is not a journal of portwatch's, and was left as it is: name another file, or move it away"
        )
    if version != VERSION:
        raise JournalError(
            f"the journal {path} is of version {version}, and this portwatch knows version {VERSION}: "
            "use the portwatch that wrote it, or move it away and a new one is begun"
        )
