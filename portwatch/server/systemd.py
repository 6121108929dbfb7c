"""Notifications to systemd: ready, reloading, stopping and the watchdog (sd_notify(3))."""

from __future__ import annotations

import os
import socket
import time


def notify(*lines: str) -> None:
    """Send a message to the service manager. Do nothing if NOTIFY_SOCKET is not set."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        try:
            sender.sendto("\n".join(lines).encode(), address)
        except OSError:  # the service manager has exited; nothing depends on the message
            return


def reloading() -> None:
    """Announce a reload. `notify("READY=1")` announces its end."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_interval() -> float | None:
    """Return the watchdog's timeout in seconds, or None if there is no watchdog for this process."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID")
    if not microseconds.isdecimal() or pid not in (None, str(os.getpid())):
        return None
    return int(microseconds) / 1e6
