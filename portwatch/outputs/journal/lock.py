"""One writer for a journal, of all processes."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from portwatch.errors import JournalError


class Lock:
    """Keeps every other writer of a journal away while it is held.

    Raises JournalError if somebody else holds it, and OSError where none can be made.
    """

    def __init__(self, path: Path) -> None:
        # A file of its own: closing another descriptor of the database would drop SQLite's locks on it.
        self._fd = os.open(path.with_name(path.name + "-lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise JournalError(
                f"another portwatch writes the journal {path}: end that one, or name another file for this one"
            ) from None

    def release(self) -> None:
        """Lets the next one in."""
        os.close(self._fd)
