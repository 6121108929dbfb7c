"""The command `portwatch kill`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable
from typing import Any

import click

from portwatch.cli.exit_codes import FAILED
from portwatch.cli.options import interval_option, report_fallback
from portwatch.cli.port_argument import pop_query, port_options
from portwatch.cli.render import port_details
from portwatch.cli.render.text import format_processes
from portwatch.cli.sections import SectionedCommand
from portwatch.engines.limits import OTHER_OWNERS
from portwatch.engines.protocol import Options
from portwatch.errors import NotPermitted, PortwatchError
from portwatch.linux.ancestry import details_of
from portwatch.model import Process
from portwatch.port.kill import require_signal_pids, signal_holders, why_not_signalled
from portwatch.port.lookup import LookupResult, Port, PortQuery, all_holders, look_up
from portwatch.port.wait import PortWait, watch_port

_TIMEOUT = 5.0
"""How many seconds the signalled processes have to release the port."""
_NO_PROCESS = "no visible process"


class _SignalType(click.ParamType):
    name = "SIGNAL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, signal.Signals):
            return value
        name = value.upper()
        try:
            return (
                signal.Signals(int(name))
                if name.isdecimal()
                else signal.Signals[f"SIG{name.removeprefix('SIG')}"]
            )
        except (KeyError, ValueError):
            self.fail(f"{value!r} is not a signal: try TERM, KILL or 9", param, ctx)


@click.command("kill", cls=SectionedCommand, short_help="Signal the processes that hold a port.")
@click.option("--dry-run", is_flag=True, help="Print the targets without signalling them.")
@click.option(
    "--signal", "number", type=_SignalType(), default="TERM", help="The signal to send.  [default: TERM]"
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@port_options
@interval_option
def command(
    port: Port,
    dry_run: bool,
    number: signal.Signals,
    yes: bool,
    engine: str,
    ephemeral: bool,
    interval: float,
    **scope: Any,
) -> None:
    """Show the processes that hold a port, ask for confirmation, then signal them.

    PORT has the form 8080, tcp/8080 or udp/53. Only this network namespace is
    searched, unless --netns, --pid or --container is given.

    Example: portwatch kill 8080 --signal KILL
    """
    # --cgroup alone does not extend the search to other namespaces. The cgroups of containers can be below
    # /system.slice, and `kill --cgroup /system.slice` must not signal the processes of containers.
    query = pop_query(port, scope, own_netns=not (scope["pid"] or scope["container"]))
    options = Options(failures=False, ephemeral=ephemeral, interval=interval)
    result = look_up(query, engine, options)
    report_fallback(result.choice)
    if not result.listeners:
        raise PortwatchError(port_details.no_listener_message(port, result))
    for line in port_details.summary_lines(result):
        click.echo(line)
    require_signal_pids(result.choice.engine.name)
    targets = _targets(port, result)
    if dry_run:
        return
    if not yes and not _is_confirmed(targets, number):
        click.echo("portwatch: no process was signalled", err=True)
        sys.exit(FAILED)
    with watch_port(query, engine, options) as watcher:
        signal_holders(query, targets, number, watcher)
        click.echo(f"sent {number.name} to {format_processes(targets)}")
        waiting = PortWait(query, watcher, result.listeners)
        if not waiting.until_gone(_TIMEOUT) and (remaining := waiting.remaining()):
            raise PortwatchError(_not_free_message(port, number, result, targets, all_holders(remaining)))
    click.echo(_free_message(port, query, result))


def _targets(port: Port, result: LookupResult) -> tuple[Process, ...]:
    """Return the processes to signal. Report every holder that is skipped, and why."""
    holders = all_holders(result.listeners)
    if not holders:
        raise _no_holder_error(port, result)
    reasons = {holder: _why_skipped(holder, port, result) for holder in holders}
    for holder, reason in reasons.items():
        if reason:
            click.echo(f"portwatch: {format_processes([holder])} is not signalled: {reason}", err=True)
    targets = tuple(holder for holder, reason in reasons.items() if not reason)
    if not targets:
        raise PortwatchError(f"every process that holds {port} was skipped: no process was signalled")
    return targets


def _no_holder_error(port: Port, result: LookupResult) -> PortwatchError:
    if result.choice.engine.info.has_limit(OTHER_OWNERS.name):
        return NotPermitted(
            f"the processes that hold {port} are not visible, because CAP_SYS_PTRACE is missing: run portwatch "
            "as root (sudo portwatch kill)"
        )
    return PortwatchError(
        f"no process holds {port}: the kernel itself listens (VXLAN, WireGuard, NFS), so there is nothing to "
        "signal"
    )


def _why_skipped(holder: Process, port: Port, result: LookupResult) -> str | None:
    if holder not in result.matching_holders:
        return f"the options do not select this process; {port} stays open as long as it holds the socket"
    return why_not_signalled(holder)


def _is_confirmed(targets: tuple[Process, ...], number: signal.Signals) -> bool:
    if not (sys.stdin and sys.stdin.isatty()):
        raise click.UsageError("there is no terminal to ask on: pass --yes to signal without confirmation")
    return click.confirm(f"Send {number.name} to {format_processes(targets)}?", err=True)


def _not_free_message(
    port: Port,
    number: signal.Signals,
    result: LookupResult,
    signalled: tuple[Process, ...],
    remaining: tuple[Process, ...],
) -> str:
    """Return why the port is still open, and what to try."""
    if remaining and not _overlap(remaining, all_holders(result.listeners)):
        ancestry = " > ".join(f"{one.process}({one.pid})" for one in details_of(remaining[0]).ancestry)
        return (
            f"{port} is held again, by {format_processes(remaining)}: stop the supervisor that restarts it "
            f"({ancestry})"
        )
    if not remaining:
        hint = f"; a descriptor may be in transit between processes: run portwatch who {port.number}"
    elif not _overlap(remaining, signalled):
        hint = ", which was not signalled (see above)"
    elif number is signal.SIGKILL:
        hint = "; a process that survives SIGKILL is blocked in the kernel, for example by a disk that hangs"
    else:
        hint = f"; if it ignores {number.name}, try --signal KILL"
    return f"{port} is still held after {_TIMEOUT:g} s, by {format_processes(remaining) or _NO_PROCESS}{hint}"


def _overlap(processes: Iterable[Process], others: tuple[Process, ...]) -> bool:
    return any(process.is_same_as(other) for process in processes for other in others)


def _free_message(port: Port, query: PortQuery, result: LookupResult) -> str:
    outside_scope = [
        listener
        for listener in result.all_listeners
        if query.socket_scope.admits_listener(listener) and listener not in result.listeners
    ]
    if not outside_scope:
        return f"{port} is free"
    holders = format_processes(all_holders(outside_scope)) or _NO_PROCESS
    return f"{port} is free in the selected scope, but still held outside it, by {holders}"
