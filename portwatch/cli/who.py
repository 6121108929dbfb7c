"""portwatch who."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from portwatch.ancestry import with_background
from portwatch.cli import FAILED, portrait
from portwatch.cli.options import say_fallback
from portwatch.cli.port import PortCommand, port_options, question_of
from portwatch.engines import Options
from portwatch.inquiry import Port, inquire
from portwatch.model import Listener


@click.command("who", cls=PortCommand)
@click.option("--json", "as_json", is_flag=True, help="One listener a line, for programs.")
@port_options
def command(
    target: Port,
    as_json: bool,
    engine: str,
    ephemeral: bool,
    interval: float,
    **scope: Any,
) -> None:
    """All that is known of PORT (8080, tcp/8080), and of who holds it.

    Example: portwatch who udp/53
    """
    question = question_of(target, scope, here=False)
    finding = inquire(question, engine, Options(ephemeral=ephemeral, interval=interval))
    say_fallback(finding.choice)
    if not finding.listeners:
        # To programs, no line at all is the answer.
        click.echo(portrait.nobody(target, finding), err=as_json)
        sys.exit(FAILED)
    for line in _json_lines(finding.listeners) if as_json else portrait.lines(finding):
        click.echo(line)


def _json_lines(listeners: tuple[Listener, ...]) -> Iterator[str]:
    from json import dumps  # 7 ms, for those who ask for it

    for one in listeners:
        yield dumps(with_background(one), separators=(",", ":"))
