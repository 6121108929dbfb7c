"""What systemd is told, where it started us: that we are ready, alive, reloading, ending."""

from __future__ import annotations

import os
import socket
import time


def notify(*lines: str) -> None:
    """Sends a message to whoever started us, if they asked for any (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        try:
            sender.sendto("\n".join(lines).encode(), address)
        except OSError:  # whoever asked has gone: nobody is left to be told
            return


def reloading() -> None:
    """Says that a reload begins; `notify("READY=1")` ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_interval() -> float | None:
    """Seconds within which we must say that we are alive; None if nobody waits for it."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID")
    if not microseconds.isdecimal() or pid not in (None, str(os.getpid())):
        return None
    return int(microseconds) / 1e6
