"""Run who, wait and kill on an actor's network namespace."""

import subprocess
import sys

from click.testing import CliRunner
from support import PATIENCE

from portwatch.cli.main import portwatch

PORTWATCH = [sys.executable, "-m", "portwatch"]


def poll_often(command):
    """Return the options that make a command's poll engine poll every 50 ms; `who` does not poll."""
    return [] if command == "who" else ["--interval", "0.05"]


def run(command, actor, *arguments):
    return subprocess.run(
        [*PORTWATCH, command, *poll_often(command), "--netns", actor.namespace, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def invoke(command, actor, *arguments):
    """Run a command in this process, so that a test can patch it."""
    arguments = (command, *poll_often(command), "--netns", actor.namespace, *arguments)
    return CliRunner().invoke(portwatch, arguments, prog_name="portwatch")


def reap_in_the_background(actor):
    """Have the kernel reap the actor's children: a killed one must not stay as a zombie."""
    actor.do("import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)")
