"""Damaged journals: renamed, so that a new one can be started."""

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
    """Rename a damaged journal and log that. Return its last seq, or None if that cannot be read.

    The caller holds the journal's lock, and has closed the database.
    """
    last_seq = _last_seq(path)
    seconds, fraction = divmod(time.time_ns(), 1_000_000_000)
    timestamp = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(seconds))}.{fraction:09}Z"
    broken = path.with_name(f"{path.name}.broken-{timestamp}")
    # The WAL first: SQLite must never apply it to another database.
    for old, new in zip((*companions(path), path), (*companions(broken), broken), strict=True):
        with suppress(FileNotFoundError):  # each of the three may be missing
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
    # immutable=1: SQLite creates no files next to it. An error only means that the seq cannot be read.
    with suppress(sqlite3.Error), closing(connect(path, "mode=ro&immutable=1", 0)) as db:
        db.execute("PRAGMA writable_schema = ON")  # without it, a truncated file cannot be read at all
        (seq,) = db.execute("SELECT max(seq) FROM events").fetchone()
        return seq if isinstance(seq, int) else None
    return None
