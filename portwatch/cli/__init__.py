"""The command line. Each command is a file, imported when it is called."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from typing import NoReturn

import click

from portwatch.cli.text import printable
from portwatch.errors import EngineUnavailable, PortwatchError, WrongUse

COMMANDS = ("tail", "list", "who", "wait", "kill", "serve", "history", "doctor")
FAILED, WRONG_USE, NOT_ALLOWED, TIME_IS_UP = 1, 2, 3, 124
_CODES = {EngineUnavailable: NOT_ALLOWED, WrongUse: WRONG_USE}

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"portwatch.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="portwatch-ebpf", prog_name="portwatch")
def portwatch() -> None:
    """Sees every listening port open and close, at the moment it happens, and says who did it.

    Without a command: tail. Example: portwatch --port 8000-8999
    """


def main() -> None:
    """The entry point: turns what went wrong into one line and an exit code."""
    arguments = sys.argv[1:]
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")):
        arguments.insert(0, "tail")
    _set_endings(follows=arguments[0] == "tail")
    if sys.stdout is None:
        _fail("standard output is closed, so nobody would see the answer", WRONG_USE)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a process may have any name
    try:
        portwatch.main(arguments, prog_name="portwatch")
    except PortwatchError as error:
        _fail(str(error), code_of(error))
    except OSError as error:
        # What could not be written must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _fail(str(error), FAILED)


def code_of(error: PortwatchError) -> int:
    """The exit code that says what went wrong."""
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), FAILED)


def _set_endings(follows: bool) -> None:
    """How signals end us: at once, wherever they find us, without a word.

    Not by an exception: raised while libbpf calls back, it would be printed and lost.
    Nothing is left behind, as the kernel takes back what hangs on our descriptors. What
    follows events is meant to be ended, so that is no failure.
    """
    for ending in ENDINGS:
        if signal.getsignal(ending) == signal.SIG_IGN:
            continue  # by nohup, or a shell for what runs in its background
        signal.signal(ending, (lambda *_: os._exit(0)) if follows else signal.SIG_DFL)


def _fail(words: str, code: int) -> NoReturn:
    click.echo(f"portwatch: {printable(words)}", err=True)
    sys.exit(code)
