"""The command `portwatch history`."""

from __future__ import annotations

import time
from itertools import chain
from pathlib import Path
from typing import Any

import click

from portwatch.cli.options import GLOBS, PORTS
from portwatch.cli.render.terminal import styled_event_line, write_line
from portwatch.cli.sections import SectionedCommand
from portwatch.filters.parsing import parse_time
from portwatch.filters.scope import PortRange


class _TimeType(click.ParamType):
    name = "WHEN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return parse_time(value, time.time_ns())
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("history", cls=SectionedCommand, short_help="Print past events from the journal.")
@click.option(
    "--journal",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    metavar="PATH",
    help="The file given to `portwatch serve --journal`.",
)
@click.option("--json", "as_json", is_flag=True, help="Print each event as one line of JSON.")
@click.option(
    "--since",
    type=_TimeType(),
    help="Leave out events before this time: 2h for 2 hours ago (also m, d), 14:30, or 2026-11-21T03:57:02Z.",
)
@click.option("--port", "ports", type=PORTS, multiple=True, help="Only these ports and ranges: 80,8000-8999.")
@click.option(
    "--process", "names", type=GLOBS, multiple=True, help="Only processes with these names: 'nginx*'."
)
def command(
    journal: Path,
    as_json: bool,
    since: int | None,
    ports: tuple[tuple[PortRange, ...], ...],
    names: tuple[tuple[str, ...], ...],
) -> None:
    """Print past events from the journal of portwatch serve, oldest first.

    Example: portwatch history --journal /var/lib/portwatch/journal --since 2h
    """
    # Imported here because it imports sqlite3, which is not needed to report a usage error.
    from portwatch.outputs.journal import Reader

    reader = Reader(journal)
    lines = reader.events(
        since=since, ports=tuple(chain.from_iterable(ports)), process=tuple(chain.from_iterable(names))
    )
    for line in lines:
        write_line(line if as_json else styled_event_line(reader.event(line), dated=True))
