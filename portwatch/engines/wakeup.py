"""An event that makes the thread that reads an engine return from its wait."""

from __future__ import annotations

import os
import threading


class Wakeup:
    """An eventfd to poll together with other descriptors.

    `set` is safe at any time, even after `close`: it never writes to another file that has got the same
    descriptor number since.
    """

    def __init__(self) -> None:
        self._fd: int | None = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # Guards _fd. Reentrant, because a signal handler may call `set` while its own thread holds the lock.
        self._lock = threading.RLock()

    def fileno(self) -> int:
        """Return the descriptor to poll, or -1 after `close`."""
        return -1 if self._fd is None else self._fd

    def set(self) -> None:
        """End the current wait or, if there is none, the next one. Any thread or signal handler may call it."""
        with self._lock:
            if self._fd is not None:
                os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Re-arm the event."""
        os.eventfd_read(self.fileno())

    def forget(self) -> None:
        """Close the descriptor, in a forked child, where a thread that held the lock may not exist any more."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Close the descriptor."""
        with self._lock:
            fd, self._fd = self._fd, None
            if fd is not None:
                os.close(fd)
