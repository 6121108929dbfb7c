"""portwatch list."""

from __future__ import annotations

from typing import Any

import click

from portwatch.cli.options import (
    engine_option,
    ephemeral_option,
    pids_of,
    say_fallback,
    scope_of,
    scope_options,
)
from portwatch.cli.render.terminal import terminal_width
from portwatch.engines.protocol import Options
from portwatch.watch.listing import listing
from portwatch.watch.trees import held_by_trees


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="One listener a line, for programs.")
@click.option("--no-failures", is_flag=True, hidden=True, expose_value=False)  # as tail has it: here are none
@scope_options()
@engine_option
@ephemeral_option()
def command(as_json: bool, engine: str, ephemeral: bool, **scope: Any) -> None:
    """What is open now, and who holds it.

    Example: portwatch list --exposure all,public
    """
    pids, wanted = pids_of(scope), scope_of(scope)
    with listing(engine, Options(ephemeral=ephemeral)) as (choice, all_listeners):
        say_fallback(choice)
        listeners = [
            one for one in held_by_trees(pids, all_listeners, choice.engine.name) if wanted.admits_listener(one)
        ]
    if as_json:
        lines = [one.to_json() for one in listeners]
    else:
        from portwatch.cli.render.text import listener_table

        lines = listener_table(listeners, terminal_width())
    for line in lines:
        click.echo(line)
