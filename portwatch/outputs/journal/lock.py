"""The lock on a journal. It keeps out a second writer in this process or in any other."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from portwatch.errors import JournalError


class Lock:
    """An exclusive lock on a journal, held from creation to `release`.

    Raises JournalError if another writer holds the lock, and OSError if the lock file cannot be created.
    """

    def __init__(self, path: Path) -> None:
        # The lock has its own file, because closing a descriptor of the database drops SQLite's POSIX locks.
        self._fd = os.open(path.with_name(path.name + "-lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise JournalError(
                f"another portwatch writes the journal {path}: stop it, or choose another file"
            ) from None

    def release(self) -> None:
        """Release the lock."""
        os.close(self._fd)
