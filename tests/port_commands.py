"""Run portwatch commands in an actor's network namespace."""

import subprocess

import commands
from click.testing import CliRunner

from portwatch.cli.main import portwatch


def poll_often(command):
    """Return options that shorten the poll interval, if the command has such an option."""
    return [] if command in ("list", "who") else ["--interval", "0.05"]


def run(command, actor, *arguments):
    """Run a command as a process, without a terminal."""
    arguments = (*poll_often(command), "--netns", actor.namespace, *arguments)
    return commands.run(command, *arguments, stdin=subprocess.DEVNULL)


def invoke(command, actor, *arguments):
    """Run a command in the test process, so that the test can patch portwatch."""
    arguments = (command, *poll_often(command), "--netns", actor.namespace, *arguments)
    return CliRunner().invoke(portwatch, arguments, prog_name="portwatch")


def reap_in_the_background(actor):
    """Let the kernel reap the actor's children, so that a killed child does not stay a zombie."""
    actor.do("import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)")
