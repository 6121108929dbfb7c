"""Events, a line each, on standard output for as long as somebody reads it."""

from __future__ import annotations

import errno
import os
import shutil
import sys

import click

from portwatch.event import Event

_READER_GONE = (errno.EPIPE, errno.EIO)
"""What a pipe says that is closed, and a terminal that went away."""


def write(line: str) -> None:
    """Writes a line at once; ends the process, which did nothing wrong, if nobody reads any more."""
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except OSError as error:
        if error.errno in _READER_GONE:
            os._exit(0)
        raise


def coloured(event: Event, *, dated: bool = False) -> str:
    """An event as people read it, as wide as the terminal is, and in colours where it has them."""
    from portwatch.cli.render.text import KINDS, event_line  # nothing that --json pays for

    line = event_line(event, dated=dated, width=terminal_width())
    if _colours():
        line = click.style(line, fg=KINDS[event.kind][1], dim=event.origin == "snapshot")
    return line


def terminal_width() -> int | None:
    """The columns of the terminal that is written to; None if it is none, and lines may be of any length."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _colours() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
