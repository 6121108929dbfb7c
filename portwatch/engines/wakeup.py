"""What ends a wait of the thread that reads an engine."""

from __future__ import annotations

import os
import threading


class Wakeup:
    """A descriptor to wait on. Set when it is closed already, it leaves alone what got its number."""

    def __init__(self) -> None:
        self._fd: int | None = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # To be entered again by a signal handler, which may come at any time.
        self._guard = threading.RLock()

    def fileno(self) -> int:
        """For pollers; -1 when it is closed."""
        return -1 if self._fd is None else self._fd

    def set(self) -> None:
        """Ends a wait, or the next one; from any thread, and from a signal handler."""
        with self._guard:
            if self._fd is not None:
                os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Has the next wait be one."""
        os.eventfd_read(self.fileno())

    def close(self) -> None:
        """Ends it."""
        with self._guard:
            fd, self._fd = self._fd, None
            if fd is not None:
                os.close(fd)
