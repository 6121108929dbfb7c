"""A journal that is damaged is set aside, so that the next one can be begun."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

from portwatch.outputs.journal.schema import companions, connect

log = logging.getLogger("portwatch")


def set_aside(path: Path, why: object) -> int | None:
    """Renames a journal that nobody writes, and says so; its last seq, if that can be read."""
    last_seq = _last_seq(path)
    seconds, fraction = divmod(time.time_ns(), 1_000_000_000)
    moment = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(seconds))}.{fraction:09}Z"
    broken = path.with_name(f"{path.name}.broken-{moment}")
    # The WAL first: it must never meet another database than its own.
    for one, aside in zip((*companions(path), path), (*companions(broken), broken), strict=True):
        with suppress(FileNotFoundError):  # a damaged journal may have lost any of them
            os.rename(one, aside)
    log.warning(
        "the journal %s is damaged (%s): it is now %s, and a new one is begun; "
        "`sqlite3 %s .recover` shows what can be saved",
        path,
        why,
        broken,
        broken,
    )
    return last_seq


def _last_seq(path: Path) -> int | None:
    # Immutable: nothing is made beside it. That it cannot be read is what damage may mean.
    with suppress(sqlite3.Error), closing(connect(path, "mode=ro&immutable=1", 0)) as db:
        db.execute("PRAGMA writable_schema = ON")  # or a file cut short gives nothing at all
        (seq,) = db.execute("SELECT max(seq) FROM events").fetchone()
        return seq if isinstance(seq, int) else None
    return None
