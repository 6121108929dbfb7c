"""The command `portwatch list`."""

from __future__ import annotations

from typing import Any

import click

from portwatch.cli.options import (
    engine_option,
    ephemeral_option,
    pop_pids,
    pop_scope,
    report_fallback,
    scope_options,
)
from portwatch.cli.render.terminal import terminal_width
from portwatch.cli.sections import SectionedCommand
from portwatch.engines.protocol import Options
from portwatch.watch.listing import listing
from portwatch.watch.trees import held_by_trees


@click.command("list", cls=SectionedCommand, short_help="Print open ports and the processes that hold them.")
@click.option("--json", "as_json", is_flag=True, help="Print each listener as one line of JSON.")
@click.option(
    "--no-failures",
    is_flag=True,
    expose_value=False,
    help="No effect, because list reports no failures. Accepted as tail has it.",
)
@scope_options()
@engine_option
@ephemeral_option
def command(as_json: bool, engine: str, ephemeral: bool, **scope: Any) -> None:
    """Print open ports and the processes that hold them, then exit.

    Example: portwatch list --exposure all,public
    """
    pids, admitted = pop_pids(scope), pop_scope(scope)
    with listing(engine, Options(ephemeral=ephemeral)) as (choice, all_listeners):
        report_fallback(choice)
        held = held_by_trees(pids, all_listeners, choice.engine.name)
        listeners = [listener for listener in held if admitted.admits_listener(listener)]
    if as_json:
        lines = [listener.to_json() for listener in listeners]
    else:
        from portwatch.cli.render.text import listener_table  # imported here: --json does not need it

        lines = listener_table(listeners, terminal_width())
    for line in lines:
        click.echo(line)
