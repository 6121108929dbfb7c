"""The command `portwatch wait`."""

from __future__ import annotations

import os
from typing import Any

import click

from portwatch.cli.exit_codes import TIMED_OUT
from portwatch.cli.options import Seconds, interval_option, report_fallback
from portwatch.cli.port_argument import pop_query, port_options
from portwatch.cli.sections import SectionedCommand
from portwatch.engines.protocol import Options
from portwatch.port.lookup import Port
from portwatch.port.wait import PortWait, watch_port

_YEAR = 366 * 86_400


@click.command("wait", cls=SectionedCommand, short_help="Wait until a port opens, or closes.")
@click.option("--gone", is_flag=True, help="Wait until no process listens on the port.")
@click.option(
    "--timeout",
    type=Seconds(min=0, max=_YEAR),
    metavar="SECONDS",
    help="Give up after this time and exit with 124.",
)
@port_options
@interval_option
def command(
    port: Port,
    gone: bool,
    timeout: float | None,
    engine: str,
    ephemeral: bool,
    interval: float,
    **scope: Any,
) -> None:
    """Wait until a process listens on a port, then exit with 0.

    PORT has the form 8080, tcp/8080 or udp/53. Only this network namespace is
    searched, unless --netns, --pid, --cgroup or --container is given.

    Example: portwatch wait 5432 --timeout 30 && ./migrate
    """
    own_netns = not (scope["pid"] or scope["container"] or scope["cgroup"])
    query = pop_query(port, scope, own_netns=own_netns)
    watcher = watch_port(query, engine, Options(failures=False, ephemeral=ephemeral, interval=interval))
    watcher.start()
    report_fallback(watcher.choice)
    waiting = PortWait(query, watcher)
    is_over = waiting.until_gone(timeout) if gone else waiting.until_open(timeout)
    if not is_over:
        state = f"{port} is still open" if gone else f"nothing listens on {port} yet"
        click.echo(f"portwatch: timed out: {state} (run portwatch who {port.number} for details)", err=True)
    # Exit without detaching, because the kernel removes the BPF programs when our descriptors close. The caller
    # sees this exit after 2 ms, whereas detaching one program after another takes 17 ms.
    os._exit(0 if is_over else TIMED_OUT)
