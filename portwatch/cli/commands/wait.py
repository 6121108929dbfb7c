"""portwatch wait."""

from __future__ import annotations

import os
from typing import Any

import click

from portwatch.cli.exit_codes import TIMED_OUT
from portwatch.cli.options import Seconds, interval_option, say_fallback
from portwatch.cli.port_argument import PortCommand, port_options, query_of
from portwatch.engines.protocol import Options
from portwatch.port.lookup import Port
from portwatch.port.wait import PortWait, watch_port

_A_YEAR = 366 * 86_400


@click.command("wait", cls=PortCommand)
@click.option("--gone", is_flag=True, help="Until nobody listens any more.")
@click.option("--timeout", type=Seconds(min=0, max=_A_YEAR), metavar="SECONDS", help="Then exit with 124.")
@port_options
@interval_option()
def command(
    target: Port,
    gone: bool,
    timeout: float | None,
    engine: str,
    ephemeral: bool,
    interval: float,
    **scope: Any,
) -> None:
    """Returns when somebody listens on PORT (8080, tcp/8080) in our own namespace,
    or in whichever those processes are that are asked for.

    Example: portwatch wait 5432 --timeout 30 && ./migrate
    """
    here = not (scope["pid"] or scope["container"] or scope["cgroup"])
    query = query_of(target, scope, here=here)
    watcher = watch_port(query, engine, Options(failures=False, ephemeral=ephemeral, interval=interval))
    watcher.start()
    say_fallback(watcher.choice)
    waiting = PortWait(query, watcher)
    is_so = (waiting.until_gone if gone else waiting.until_open)(timeout)
    if not is_so:
        outcome = f"somebody still listens on {target}" if gone else f"nobody listens on {target} yet"
        click.echo(f"portwatch: {outcome} (portwatch who {target.number} tells more)", err=True)
    # The kernel takes the programs out as at any exit: the caller knows after 2 ms, where one that
    # is detached program by program takes 17.
    os._exit(0 if is_so else TIMED_OUT)
