"""A way to wake the thread that waits for an engine's records."""

from __future__ import annotations

import os
import threading


class Wakeup:
    """An eventfd. A thread polls it together with other descriptors, so that another thread can end the wait.

    `set` is safe at any time. After `close`, another file may have the same descriptor number, but `set` never
    writes to that file.
    """

    def __init__(self) -> None:
        self._fd: int | None = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # Guards _fd. It is reentrant, because a signal handler may call `set` in a thread that holds the lock.
        self._lock = threading.RLock()

    def fileno(self) -> int:
        """Return the descriptor to poll, or -1 after `close`."""
        return -1 if self._fd is None else self._fd

    def set(self) -> None:
        """End the current wait. If no thread is waiting, the next wait ends at once.

        Any thread or signal handler may call this.
        """
        with self._lock:
            if self._fd is not None:
                os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Reset the eventfd, so that the next wait lasts until `set` is called again."""
        os.eventfd_read(self.fileno())

    def forget(self) -> None:
        """Close the descriptor in a forked child.

        This does not take the lock. If another thread held the lock at the fork, that thread does not exist in
        the child, so the lock would never be released.
        """
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Close the descriptor."""
        with self._lock:
            fd, self._fd = self._fd, None
            if fd is not None:
                os.close(fd)
