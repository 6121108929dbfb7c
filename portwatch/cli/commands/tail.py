"""portwatch tail."""

from __future__ import annotations

import os
import select
import sys
import threading
from typing import Any

import click

from portwatch.cli.options import (
    engine_option,
    ephemeral_option,
    interval_option,
    pids_of,
    say_fallback,
    say_unseen_failures,
    scope_of,
    scope_options,
)
from portwatch.cli.render.terminal import coloured, write
from portwatch.engines.core.hooks import HOOK_SETS
from portwatch.watch.watcher import PortWatcher


@click.command("tail")
@click.option("--json", "as_json", is_flag=True, help="One event a line, for programs.")
@click.option("--no-snapshot", is_flag=True, help="Only what changes from now on.")
@click.option("--no-failures", is_flag=True, help="No failed binds and listens, nor their cost.")
@click.option(
    "--hooks",
    type=click.Choice(["auto", *HOOK_SETS]),
    default="auto",
    metavar="SET",
    hidden=True,  # for who develops it; README has it
)
@scope_options()
@engine_option
@ephemeral_option()
@interval_option()
def command(
    as_json: bool,
    no_snapshot: bool,
    no_failures: bool,
    engine: str,
    ephemeral: bool,
    interval: float,
    hooks: str,
    **scope: Any,
) -> None:
    """What is open, then each change as it happens.

    Example: portwatch tail --port 8000-8999 --not-process 'node*'
    """
    pids = pids_of(scope)
    watcher = PortWatcher(
        scope=scope_of(scope),
        not_pids=pids.exclude,
        engine=engine,
        snapshot=not no_snapshot,
        failures=not no_failures,
        ephemeral=ephemeral,
        interval=interval,
        hooks=hooks,
    )
    for pid in pids.include:
        watcher.add_pid(pid)
    _end_with_the_reader()
    with watcher:
        say_fallback(watcher.choice)
        if not no_failures:
            say_unseen_failures(watcher.choice)
        for event in watcher:
            write(event.to_json() if as_json else coloured(event))


def _end_with_the_reader() -> None:
    """Ends the tail when whoever reads it has gone, also while nothing is written."""

    def wait() -> None:
        poller = select.poll()
        poller.register(sys.stdout.fileno(), 0)  # an error or a hang-up is always told
        poller.poll()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
