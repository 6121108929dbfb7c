"""The entry point and the list of commands."""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import NoReturn

import click

from portwatch import __version__
from portwatch.cli.exit_codes import FAILED, WRONG_USE, exit_code
from portwatch.cli.render.text import printable
from portwatch.cli.signals import end_on_signals
from portwatch.errors import PortwatchError

COMMANDS = ("tail", "list", "who", "wait", "kill", "serve", "history", "doctor")
DEFAULT_COMMAND = "tail"
FOLLOWERS = ("tail",)
"""Commands that run until a signal ends them, and then exit with 0."""


class _Commands(click.Group):
    """A group that imports the module of a command only when the command is used, and has a default command."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002  # click's signature
        cmd_name: str,
    ) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"portwatch.cli.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        end_on_signals(as_success=args[0] in FOLLOWERS)
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own_options = {name for param in self.get_params(ctx) for name in param.opts}
        if not args or (args[0].startswith("-") and args[0] not in own_options):
            args = [DEFAULT_COMMAND, *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="portwatch")
def portwatch() -> None:
    """Report every listening port as it opens and closes, and the process responsible.

    The default command is tail. Example: portwatch --port 8000-8999
    """


def main() -> None:
    """Run a command. If it fails, print the error as one line on stderr and exit with the error's code."""
    end_on_signals(as_success=False)
    if sys.stdout is None:
        _fail("standard output is closed: redirect it to a file or to /dev/null", WRONG_USE)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a process name can contain any bytes
    try:
        portwatch.main(prog_name="portwatch")
    except PortwatchError as error:
        _fail(str(error), exit_code(error))
    except OSError as error:
        # Python flushes stdout at exit. Point it at /dev/null so that this flush does not fail as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _fail(str(error), FAILED)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"portwatch: {printable(message)}", err=True)
    sys.exit(code)
