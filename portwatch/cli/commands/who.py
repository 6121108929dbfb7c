"""The command `portwatch who`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from portwatch.cli.exit_codes import FAILED
from portwatch.cli.options import report_fallback
from portwatch.cli.port_argument import pop_query, port_options
from portwatch.cli.render import port_details
from portwatch.cli.sections import SectionedCommand
from portwatch.engines.protocol import Options
from portwatch.event import Listener
from portwatch.linux.ancestry import listener_with_details
from portwatch.port.lookup import Port, look_up


@click.command("who", cls=SectionedCommand, short_help="Print everything known about a port and its processes.")
@click.option("--json", "as_json", is_flag=True, help="Print each listener as one line of JSON.")
@port_options
def command(
    port: Port,
    as_json: bool,
    engine: str,
    ephemeral: bool,
    **scope: Any,
) -> None:
    """Print everything known about a port and the processes that hold it.

    PORT has the form 8080, tcp/8080 or udp/53. All network namespaces are
    searched. If nothing listens on PORT, print what else uses the port, and exit
    with 1.

    Example: portwatch who udp/53
    """
    query = pop_query(port, scope, own_netns=False)
    result = look_up(query, engine, Options(ephemeral=ephemeral))
    report_fallback(result.choice)
    if not result.listeners:
        # With --json, stdout has only JSON, so the message goes to stderr.
        click.echo(port_details.no_listener_message(port, result), err=as_json)
        sys.exit(FAILED)
    for line in _json_lines(result.listeners) if as_json else port_details.detail_lines(result):
        click.echo(line)


def _json_lines(listeners: tuple[Listener, ...]) -> Iterator[str]:
    from json import dumps  # imported here because the import takes 7 ms

    for listener in listeners:
        yield dumps(listener_with_details(listener), separators=(",", ":"))
