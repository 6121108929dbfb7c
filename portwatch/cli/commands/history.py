"""portwatch history."""

from __future__ import annotations

import time
from itertools import chain
from pathlib import Path
from typing import Any

import click

from portwatch.cli.options import GLOBS, PORTS
from portwatch.cli.render.terminal import coloured, write
from portwatch.filters.parsing import moment
from portwatch.filters.scope import PortRange


class _Moment(click.ParamType):
    name = "WHEN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return moment(value, time.time_ns())
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("history")
@click.option(
    "--journal",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    metavar="PATH",
    help="The journal that `portwatch serve --journal` writes.",
)
@click.option("--json", "as_json", is_flag=True, help="One event a line, for programs.")
@click.option("--since", type=_Moment(), help="10m, 2h, 3d, 14:30, 2026-11-21T03:57:02Z.")
@click.option("--port", "ports", type=PORTS, multiple=True, help="Ports and ranges: 80,8000-8999.")
@click.option("--process", "names", type=GLOBS, multiple=True, help="Names of processes: 'nginx*'.")
def command(
    journal: Path,
    as_json: bool,
    since: int | None,
    ports: tuple[tuple[PortRange, ...], ...],
    names: tuple[tuple[str, ...], ...],
) -> None:
    """What opened and closed before, the oldest first.

    Example: portwatch history --journal /var/lib/portwatch/journal --since 2h
    """
    from portwatch.outputs.journal import Reader  # sqlite3, for those who typed it right

    reader = Reader(journal)
    lines = reader.events(
        since=since, ports=tuple(chain.from_iterable(ports)), process=tuple(chain.from_iterable(names))
    )
    for line in lines:
        write(line if as_json else coloured(reader.event(line), dated=True))
