"""portwatch who."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from portwatch.cli.exit_codes import FAILED
from portwatch.cli.options import say_fallback
from portwatch.cli.port_argument import PortCommand, port_options, query_of
from portwatch.cli.render import port_details
from portwatch.engines.protocol import Options
from portwatch.event import Listener
from portwatch.linux.ancestry import listener_with_details
from portwatch.port.lookup import Port, look_up


@click.command("who", cls=PortCommand)
@click.option("--json", "as_json", is_flag=True, help="One listener a line, for programs.")
@port_options
def command(
    target: Port,
    as_json: bool,
    engine: str,
    ephemeral: bool,
    **scope: Any,
) -> None:
    """All that is known of PORT (8080, tcp/8080), and of who holds it.

    Example: portwatch who udp/53
    """
    query = query_of(target, scope, here=False)
    result = look_up(query, engine, Options(ephemeral=ephemeral))
    say_fallback(result.choice)
    if not result.listeners:
        # To programs, no line at all is the answer.
        click.echo(port_details.nobody(target, result), err=as_json)
        sys.exit(FAILED)
    for line in _json_lines(result.listeners) if as_json else port_details.lines(result):
        click.echo(line)


def _json_lines(listeners: tuple[Listener, ...]) -> Iterator[str]:
    from json import dumps  # 7 ms, for those who ask for it

    for one in listeners:
        yield dumps(listener_with_details(one), separators=(",", ":"))
