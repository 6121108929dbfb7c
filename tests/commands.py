"""Run portwatch commands as processes."""

import subprocess
import sys

from support import PATIENCE

PORTWATCH = [sys.executable, "-m", "portwatch"]
_POLL = ["--engine", "poll", "--interval", "0.05", "--netns", "self"]


def run(*arguments, prefix=(), command=PORTWATCH, **options):
    """Run portwatch until it exits, and return the result. Fail if it prints a traceback."""
    result = subprocess.run(
        [*prefix, *command, *arguments],
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
        **options,
    )
    assert "Traceback" not in result.stderr
    return result


def one_line(stderr):
    """Return the only line of a command's stderr. Fail if there are more."""
    [line] = stderr.splitlines()
    assert line.startswith("portwatch: ")
    return line


def start_tail(port, prefix=(), **options):
    """Start `portwatch tail` on one port, with the poll engine."""
    return subprocess.Popen(
        [*prefix, *PORTWATCH, "tail", *_POLL, "--port", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def ends_cleanly(tail):
    """Wait until tail exits. Return True if it exits with 0 and prints no error."""
    _, errors = tail.communicate(timeout=PATIENCE)
    return (tail.returncode, errors) == (0, "")
