"""Renames a damaged journal, so that a new one can be started."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

from portwatch.outputs.journal.schema import companions, connect

log = logging.getLogger("portwatch")


def set_aside(path: Path, reason: object) -> int | None:
    """Rename a damaged journal and log a warning. Return its last seq, or None if the seq cannot be read.

    The caller must hold the journal's lock and must have closed the database.
    """
    last_seq = _last_seq(path)
    seconds, fraction = divmod(time.time_ns(), 1_000_000_000)
    timestamp = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(seconds))}.{fraction:09}Z"
    broken = path.with_name(f"{path.name}.broken-{timestamp}")
    # The WAL is renamed first, because SQLite must never apply it to another database.
    for old, new in zip((*companions(path), path), (*companions(broken), broken), strict=True):
        with suppress(FileNotFoundError):  # each of the three files may be missing
            os.rename(old, new)
    log.warning(
        "the journal %s is damaged (%s): it was renamed to %s and a new one was started; "
        "`sqlite3 %s .recover` prints what can be recovered",
        path,
        reason,
        broken,
        broken,
    )
    return last_seq


def _last_seq(path: Path) -> int | None:
    # With immutable=1, SQLite creates no files beside the database. After an error, the seq is unknown.
    with suppress(sqlite3.Error), closing(connect(path, "mode=ro&immutable=1", 0)) as db:
        db.execute("PRAGMA writable_schema = ON")  # otherwise SQLite refuses to read a truncated file
        (seq,) = db.execute("SELECT max(seq) FROM events").fetchone()
        return seq if isinstance(seq, int) else None
    return None
