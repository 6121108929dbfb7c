"""portwatch kill."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any

import click

from portwatch.cli.exit_codes import FAILED
from portwatch.cli.options import interval_option, say_fallback
from portwatch.cli.port_argument import PortCommand, port_options, query_of
from portwatch.cli.render import port_details
from portwatch.cli.render.text import who
from portwatch.engines.limits import OTHER_OWNERS
from portwatch.engines.protocol import Options
from portwatch.errors import NotPermitted, PortwatchError
from portwatch.linux.ancestry import details_of
from portwatch.model import Process
from portwatch.port.kill import require_signal_pids, signal_holders, why_not_signalled
from portwatch.port.lookup import LookupResult, Port, holders_of, look_up
from portwatch.port.wait import PortWait, watch_port

_PATIENCE = 5.0
"""Seconds in which whoever is asked to end is to have ended."""
_NOBODY = "no process that we can see"


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
            self.fail(f"{value!r} is no signal: try TERM, KILL or 9", param, ctx)


@click.command("kill", cls=PortCommand)
@click.option("--dry-run", is_flag=True, help="Only show whom.")
@click.option("--signal", "number", type=_SignalType(), default="TERM", help="Sent instead of TERM.")
@click.option("--yes", is_flag=True, help="Without asking.")
@port_options
@interval_option()
def command(
    target: Port,
    dry_run: bool,
    number: signal.Signals,
    yes: bool,
    engine: str,
    ephemeral: bool,
    interval: float,
    **scope: Any,
) -> None:
    """Ends who holds PORT (8080, tcp/8080) in our own namespace, or of the --pid or
    --container asked for; shows them first.

    Example: portwatch kill 8080 --signal KILL
    """
    # Not with a cgroup: containers have theirs below the host's /system.slice, and are not what is meant.
    query = query_of(target, scope, here=not (scope["pid"] or scope["container"]))
    options = Options(failures=False, ephemeral=ephemeral, interval=interval)
    result = look_up(query, engine, options)
    say_fallback(result.choice)
    if not result.listeners:
        raise PortwatchError(port_details.nobody(target, result))
    for line in port_details.short_lines(result):
        click.echo(line)
    require_signal_pids(result.choice.engine.name)
    targets = _targets(target, result)
    if dry_run:
        return
    if not yes and not _is_agreed(targets, number):
        click.echo("portwatch: nobody was signalled", err=True)
        sys.exit(FAILED)
    with watch_port(query, engine, options) as watcher:
        signal_holders(query, targets, number, watcher)
        click.echo(f"{number.name} was sent to {_names(targets)}")
        waiting = PortWait(query, watcher, result.listeners)
        if not waiting.until_gone(_PATIENCE) and (remaining := waiting.remaining()):
            raise PortwatchError(_still_held(target, number, result, targets, holders_of(remaining)))
    others = [one for one in result.all_listeners if query.socket_scope.admits_listener(one)]
    others = [one for one in others if one not in result.listeners]
    click.echo(f"{target} is free" + (f" but for {_names(holders_of(others)) or _NOBODY}" if others else ""))


def _targets(port: Port, result: LookupResult) -> tuple[Process, ...]:
    """Who is to be signalled; says who is not, and why."""
    holders = holders_of(result.listeners)
    if not holders and result.choice.engine.info.has_limit(OTHER_OWNERS.name):
        raise NotPermitted(
            f"who holds {port} is not ours to see, for want of CAP_SYS_PTRACE; "
            "run it as root (sudo portwatch kill)"
        )
    if not holders:
        raise PortwatchError(
            f"no process holds {port}: what the kernel itself listens on (VXLAN, WireGuard, NFS) no signal ends"
        )
    outside = f"it is outside of what was asked for, and {port} stays held as long as it holds it"
    reasons = {
        holder: why_not_signalled(holder) if holder in result.matching_holders else outside
        for holder in holders
    }
    for holder, reason in reasons.items():
        if reason:
            click.echo(f"portwatch: {_names([holder])} is not signalled: {reason}", err=True)
    targets = tuple(holder for holder in holders if not reasons[holder])
    if not targets:
        raise PortwatchError(f"nobody else holds {port}, or was asked for: nobody was signalled")
    return targets


def _is_agreed(targets: tuple[Process, ...], number: signal.Signals) -> bool:
    if not (sys.stdin and sys.stdin.isatty()):
        raise click.UsageError("there is no terminal to ask on: pass --yes to signal without being asked")
    return click.confirm(f"Send {number.name} to {_names(targets)}?", err=True)


def _still_held(
    port: Port,
    number: signal.Signals,
    result: LookupResult,
    signalled: tuple[Process, ...],
    remaining: tuple[Process, ...],
) -> str:
    """Why the port is not free, and what would help."""
    if remaining and not any(map(_is_one_of(holders_of(result.listeners)), remaining)):
        parents = " > ".join(f"{one.process}({one.pid})" for one in details_of(remaining[0]).ancestry)
        return f"{port} is held again, by {_names(remaining)}: whoever starts it is to be told ({parents})"
    if not remaining:
        helps = "a descriptor may be on its way between two (portwatch who tells when it has come)"
    elif not any(map(_is_one_of(signalled), remaining)):
        helps = "who was not signalled"
    elif number is signal.SIGKILL:
        helps = "what outlives SIGKILL waits within the kernel, as for a disk that does not answer"
    else:
        helps = f"--signal KILL ends who does not heed {number.name}"
    return f"{port} is still held after {_PATIENCE:g} s, by {_names(remaining) or _NOBODY}; {helps}"


def _is_one_of(processes: tuple[Process, ...]) -> Callable[[Process], bool]:
    return lambda one: any(map(one.is_same_as, processes))


def _names(processes: Iterable[Process]) -> str:
    return ", ".join(who(one.process, one.pid) for one in processes)
