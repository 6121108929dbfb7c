"""Output to a terminal or a pipe: flushed lines, colors, and the width of the terminal."""

from __future__ import annotations

import errno
import os
import shutil
import sys

import click

from portwatch.event import Event

_READER_GONE = (errno.EPIPE, errno.EIO)
"""Errors of a write without a reader: EPIPE on a pipe, EIO on a terminal that hung up."""
_COLORS = {
    "open": "green",
    "close": "red",
    "bind_failed": "yellow",
    "listen_failed": "yellow",
    "gap": "magenta",
}


def write_line(line: str) -> None:
    """Write a line and flush it. If the reader has gone, exit with 0."""
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except OSError as error:
        if error.errno in _READER_GONE:
            os._exit(0)
        raise


def styled_event_line(event: Event, *, dated: bool = False) -> str:
    """Return an event as a line that fits the terminal, in color if the terminal has colors."""
    from portwatch.cli.render.text import event_line  # imported here: --json does not need it

    line = event_line(event, dated=dated, width=terminal_width())
    if use_color():
        line = click.style(line, fg=_COLORS[event.kind], dim=event.origin == "snapshot")
    return line


def terminal_width() -> int | None:
    """Return the number of columns of the terminal, or None if stdout is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def use_color() -> bool:
    """Return True if stdout is a terminal with colors, and $NO_COLOR is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
