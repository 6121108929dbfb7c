"""The writer of a journal. It has its own thread, so that a slow or full disk blocks no caller."""

from __future__ import annotations

import errno
import logging
import math
import os
import sqlite3
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

from portwatch.errors import JournalError
from portwatch.event import Event
from portwatch.outputs.journal.damage import set_aside
from portwatch.outputs.journal.lock import Lock
from portwatch.outputs.journal.schema import Row, is_damaged, row_of
from portwatch.outputs.journal.store import Store, check_writable

log = logging.getLogger("portwatch")

MIN_BYTES = 8 * 2**20
"""The smallest size limit that a journal can have."""
CAPACITY = 32_768
"""Maximum number of events that wait to be written. Further events are counted as lost."""
_BATCH = 500
"""Maximum number of events in one transaction."""
_PAUSE = 0.25
"""Seconds between two transactions. Events that arrive in this time share one flush of the disk."""
_RETRY = 1.0
"""Seconds between two attempts after an error."""
_IDLE_INTERVAL = 60.0
"""Seconds between two trims when no new events arrive. Old events must be deleted even then."""
_CLOSE_TIMEOUT = 1.0
_HANGING = 5.0
"""If a write takes more than this many seconds, `trouble` reports that the disk does not answer."""
_TRANSIENT = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""Errors that may go away. If one occurs in the constructor, it sets `trouble` and is not raised."""


class Journal:
    """Writes events to a journal in its own thread.

    The constructor raises JournalError if there can be no journal at this path. For a full disk or an I/O error
    the constructor sets `trouble` to the reason instead, and writing is retried.

    Only the writer's thread uses the store, except before `start` and after the thread has ended.
    """

    def __init__(self, path: Path, *, max_age: float, max_bytes: int) -> None:
        """Events are kept for `max_age` seconds. The file and its WAL together stay below `max_bytes`."""
        if max_bytes < MIN_BYTES:
            raise JournalError(
                f"a journal of {max_bytes:,} bytes is too small: use at least {MIN_BYTES:,} bytes"
            )
        self.lost = 0
        """Number of events that were never written, because too many were pending or `close` could not wait."""
        self.last_seq: int | None = None
        """The seq of the newest durable event."""
        self._path = path.resolve()  # SQLite also follows links before it creates its WAL
        self._limits = (max_age, max_bytes)
        self._lock: Lock | None = None
        self._store: Store | None = None
        self._trouble: str | None = None
        self._busy_since: float | None = None
        self._pending: deque[Event] = deque()
        self._batch: list[Row] = []
        """Rows taken from `_pending` that are not yet durable. They stay here until a write succeeds."""
        self._lost_lock = threading.Lock()
        """Guards `lost`."""
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._deadline = math.inf
        self._thread = threading.Thread(target=self._run, name="portwatch-journal", daemon=True)
        try:
            self._open()
        except sqlite3.OperationalError as error:
            self._report(error)
        except OSError as error:
            if error.errno not in _TRANSIENT:
                self._close_all()
                raise JournalError(_refusal(self._path, error)) from None
            self._report(error)
        except JournalError:
            self._close_all()
            raise

    @property
    def trouble(self) -> str | None:
        """The reason why events cannot be written at present. None if they can be written."""
        since = self._busy_since
        if since is not None and time.monotonic() - since > _HANGING:
            return f"the disk has not answered for {time.monotonic() - since:.0f} s"
        return self._trouble

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def write(self, event: Event) -> None:
        """Queue an event. Never blocks. The event is durable within a second if the disk works."""
        if len(self._pending) >= CAPACITY or self._closing.is_set():
            self._count_lost(1)
            return
        self._pending.append(event)
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Write pending events for about a second, then stop. Events that remain are counted as lost."""
        self._deadline = time.monotonic() + _CLOSE_TIMEOUT
        self._closing.set()
        self._wake.set()
        if self._thread.ident:
            self._thread.join(_CLOSE_TIMEOUT + _PAUSE)
        unwritten = len(self._pending) + len(self._batch)
        if unwritten:
            self._count_lost(unwritten)
            log.warning(
                "the journal %s was closed before its last %d events were written", self._path, unwritten
            )
        if not self._thread.is_alive():
            self._pending.clear()
            self._batch.clear()
            self._close_all()

    def _count_lost(self, count: int) -> None:
        with self._lost_lock:
            self.lost += count

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(_IDLE_INTERVAL)
            self._wake.clear()
            self._write_pending()
            if self._trouble:
                self._wake.set()
            self._closing.wait(_RETRY if self._trouble else _PAUSE)
        self._write_pending()

    def _write_pending(self) -> None:
        while self._step() and time.monotonic() < self._deadline:
            pass

    def _step(self) -> bool:
        """Write a batch. Return True if there is more to write or trim and no error has occurred."""
        self._busy_since = time.monotonic()
        try:
            while self._pending and len(self._batch) < _BATCH:
                self._batch.append(row_of(self._pending.popleft()))
            has_trimmed = self._write()
        except Exception as error:  # reported and retried, so that the thread never ends early
            self._report(error)
            return False
        finally:
            self._busy_since = None
        if self._batch:
            self._advance(self._batch[-1].seq)
            self._batch.clear()
        if self._trouble:
            log.info("the journal %s can be written again", self._path)
            self._trouble = None
        return has_trimmed or bool(self._pending)

    def _write(self) -> bool:
        store = self._open()
        try:
            return store.write(self._batch)
        except sqlite3.DatabaseError as error:
            if not is_damaged(error):
                raise
            self._close_store()
            set_aside(self._path, error)
        return self._open().write(self._batch)

    def _open(self) -> Store:
        """Return the store. Open it first if it is closed or if its file was moved or deleted."""
        if self._store and not self._store.is_in_place():
            log.warning("the journal %s was moved or deleted: starting a new one", self._path)
            self._close_all()
        if not self._store:
            check_writable(self._path)
            self._lock = self._lock or Lock(self._path)
            self._store = Store(self._path, *self._limits)
            if self._store.last_seq is not None:
                self._advance(self._store.last_seq)
        return self._store

    def _advance(self, seq: int) -> None:
        self.last_seq = seq if self.last_seq is None else max(self.last_seq, seq)

    def _close_all(self) -> None:
        self._close_store()
        if self._lock:
            self._lock.release()
            self._lock = None

    def _close_store(self) -> None:
        if self._store:
            self._store.close()
            self._store = None

    def _report(self, error: Exception) -> None:
        """Set `trouble` to the reason for an error. Log the reason if it is new."""
        reason = _reason(error, self._path.parent)
        if reason != self._trouble:
            log.warning("the journal %s cannot be written: %s; new events wait in memory", self._path, reason)
            log.debug("the error was", exc_info=error)
        self._trouble = reason


def _refusal(path: Path, error: OSError) -> str:
    if not path.parent.exists():
        return f"the journal {path} cannot be created: create the directory {path.parent} first"
    return f"the journal {path} cannot be written: {error.strerror}; choose a file that portwatch may write"


def _reason(error: Exception, directory: Path) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    # SQLite may report a full disk as an I/O error. statvfs fails if the directory does not exist.
    with suppress(OSError):
        if not os.statvfs(directory).f_bavail:
            return "the disk is full"
    return "the disk is full" if "is full" in text else text
