"""The command `portwatch tail`."""

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
    no_failures_option,
    pop_pids,
    pop_scope,
    report_fallback,
    report_unseen_failures,
    scope_options,
)
from portwatch.cli.render.terminal import styled_event_line, write_line
from portwatch.cli.sections import ENGINE, SectionedCommand, SectionOption
from portwatch.engines.core.hooks import HOOK_SETS
from portwatch.watch.watcher import PortWatcher


@click.command("tail", cls=SectionedCommand, short_help="Print open ports, then every change as it happens.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as one line of JSON.")
@click.option("--no-snapshot", is_flag=True, help="Print only changes, not the ports that are already open.")
@scope_options()
@engine_option
@ephemeral_option
@interval_option
@no_failures_option
@click.option(
    "--hooks",
    type=click.Choice(["auto", *HOOK_SETS]),
    default="auto",
    metavar="HOOKS",
    help=f"Hooks that the core engine uses: {', '.join(HOOK_SETS)}.  [default: first that works]",
    cls=SectionOption,
    section=ENGINE,
)
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
    """Print open ports, then every change as it happens.

    Example: portwatch tail --port 8000-8999 --not-process 'node*'
    """
    pids = pop_pids(scope)
    watcher = PortWatcher(
        scope=pop_scope(scope),
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
    _exit_when_the_reader_goes()
    with watcher:
        report_fallback(watcher.choice)
        if not no_failures:
            report_unseen_failures(watcher.choice)
        for event in watcher:
            write_line(event.to_json() if as_json else styled_event_line(event))


def _exit_when_the_reader_goes() -> None:
    """Start a thread that ends this process when the reader of stdout has gone, even if no event is written."""

    def wait() -> None:
        poller = select.poll()
        poller.register(sys.stdout.fileno(), 0)  # poll() reports POLLERR and POLLHUP even if not requested
        poller.poll()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
