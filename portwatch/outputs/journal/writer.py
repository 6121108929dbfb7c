"""Writes events to a journal, off the thread that has them."""

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
CAPACITY = 32_768
_AT_ONCE = 500
_PAUSE = 0.25
"""Between two commits: what arrives in it shares one flush of the disk."""
_RETRY = 1.0
_CHECK = 60.0
"""Events grow too old while nothing is written, too."""
_ENDING = 1.0
_HANGING = 5.0
_MAY_PASS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


class Journal:
    """A journal that is written. Opening raises JournalError; a full disk is no reason, but `trouble`."""

    def __init__(self, path: Path, *, max_age: float, max_bytes: int) -> None:
        """Keeps events for `max_age` seconds, and the file with its WAL below `max_bytes`."""
        if max_bytes < MIN_BYTES:
            raise JournalError(
                f"a journal of {max_bytes:,} bytes holds too little: give it {MIN_BYTES:,} or more"
            )
        self.lost = 0
        """Events that were never written: too many were pending, or it was closed before it could."""
        self.last_seq: int | None = None
        """The newest seq that is durable."""
        self._path = path.resolve()  # as SQLite does, whose files lie beside the file, not beside the link
        self._limits = (max_age, max_bytes)
        self._lock: Lock | None = None
        self._store: Store | None = None
        self._trouble: str | None = None
        self._busy_since: float | None = None
        self._pending: deque[Event] = deque()
        self._batch: list[Row] = []
        self._counting = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._deadline = math.inf
        self._thread = threading.Thread(target=self._run, name="portwatch-journal", daemon=True)
        try:
            self._open()
        except sqlite3.OperationalError as error:
            self._say(error)
        except OSError as error:
            if error.errno not in _MAY_PASS:
                self._shut()
                raise JournalError(_refusal(self._path, error)) from None
            self._say(error)
        except JournalError:
            self._shut()
            raise

    @property
    def trouble(self) -> str | None:
        """Why it cannot write at this time, or None."""
        since = self._busy_since
        if since is not None and time.monotonic() - since > _HANGING:
            return f"the disk has not answered for {time.monotonic() - since:.0f} s"
        return self._trouble

    def start(self) -> None:
        """Starts to write."""
        self._thread.start()

    def write(self, event: Event) -> None:
        """Has an event written within a second; never waits."""
        if len(self._pending) >= CAPACITY or self._closing.is_set():
            with self._counting:
                self.lost += 1
            return
        self._pending.append(event)
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Writes what is pending and ends, within about a second: what cannot be written by then is lost."""
        self._deadline = time.monotonic() + _ENDING
        self._closing.set()
        self._wake.set()
        if self._thread.ident:
            self._thread.join(_ENDING + _PAUSE)
        left = len(self._pending) + len(self._batch)
        if left:
            self.lost += left
            log.warning("the journal %s was closed before its last %d events were written", self._path, left)
        if not self._thread.is_alive():
            self._pending.clear()
            self._batch.clear()
            self._shut()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(_CHECK)
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
        """Writes some of what is pending; whether there is more to do at once."""
        self._busy_since = time.monotonic()
        try:
            while self._pending and len(self._batch) < _AT_ONCE:
                self._batch.append(row_of(self._pending.popleft()))
            has_trimmed = self._write()
        except (
            Exception
        ) as error:  # whatever it is, it is said and tried again: a thread that ends says nothing
            self._say(error)
            return False
        finally:
            self._busy_since = None
        if self._batch:
            self._reach(self._batch[-1].seq)
            self._batch.clear()
        if self._trouble:
            log.info("the journal %s is written again", self._path)
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
        """The store, opened if it is not."""
        if self._store and not self._store.is_in_place():
            log.warning("the journal %s was moved or deleted: a new one is begun", self._path)
            self._shut()
        if not self._store:
            check_writable(self._path)
            self._lock = self._lock or Lock(self._path)
            self._store = Store(self._path, *self._limits)
            if self._store.last_seq is not None:
                self._reach(self._store.last_seq)
        return self._store

    def _reach(self, seq: int) -> None:
        self.last_seq = seq if self.last_seq is None else max(self.last_seq, seq)

    def _shut(self) -> None:
        self._close_store()
        if self._lock:
            self._lock.release()
            self._lock = None

    def _close_store(self) -> None:
        if self._store:
            self._store.close()
            self._store = None

    def _say(self, error: Exception) -> None:
        """Tells of trouble: to the log once, to whoever asks as long as it lasts."""
        words = _words(error, self._path.parent)
        if words != self._trouble:
            log.warning("the journal %s cannot be written: %s; events wait for it", self._path, words)
            log.debug("it was", exc_info=error)
        self._trouble = words


def _refusal(path: Path, error: OSError) -> str:
    if not path.parent.exists():
        return f"the journal {path} has no folder: create {path.parent}"
    return f"the journal {path} cannot be written: {error.strerror}; name a file where we may"


def _words(error: Exception, folder: Path) -> str:
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    # SQLite also calls it an I/O error, and a folder that is gone is not full.
    with suppress(OSError):
        if not os.statvfs(folder).f_bavail:
            return "the disk is full"
    return "the disk is full" if "is full" in said else said
