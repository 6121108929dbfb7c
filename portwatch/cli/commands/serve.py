"""The command `portwatch serve`."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import click

from portwatch.cli.config import read_defaults
from portwatch.cli.exit_codes import exit_code
from portwatch.cli.options import (
    Seconds,
    engine_option,
    ephemeral_option,
    interval_option,
    no_failures_option,
    pop_pids,
    pop_scope,
    report_fallback,
    scope_options,
)
from portwatch.cli.port_argument import PortType
from portwatch.cli.render.log import stderr_handler
from portwatch.cli.render.text import event_line
from portwatch.cli.sections import JOURNAL, METRICS, SectionedCommand, SectionOption
from portwatch.engines.protocol import Options
from portwatch.errors import PortwatchError
from portwatch.event import Event
from portwatch.filters.scope import Scope
from portwatch.outputs.log import EventLog
from portwatch.port.lookup import Port
from portwatch.server import sockets
from portwatch.server.settings import DEFAULT_ADDRESS, Expected, JournalSettings, MetricsSettings, Settings

log = logging.getLogger("portwatch")

_DAY = 86_400
_MONTH, _CENTURY = 30 * _DAY, 36_525 * _DAY
_MAX_SIZE_DIGITS = 15
_SIZE_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

_ARGUMENTS = "portwatch.arguments"
_NOT_SETTINGS = ("check", "log_format", "config")
_FIXED_OPTIONS = {"log_format": "log", "procfs": "procfs"}
"""Parameters that a reload must not change, with the names of their options."""
_LOG_CLOSE_TIMEOUT = 0.3
"""How many seconds to wait at exit until the reader of stdout has taken the last events."""


class _ServeCommand(SectionedCommand):
    """A command that keeps its arguments, because a reload parses them again."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = tuple(args)
        return super().parse_args(ctx, args)


class _AddressType(click.ParamType):
    name = "ADDRESS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, sockets.Address):
            return value
        try:
            return sockets.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _SizeType(click.ParamType):
    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        # Imported here because it imports sqlite3, which takes 11 ms.
        from portwatch.outputs.journal.writer import MIN_BYTES

        if isinstance(value, int):
            return value
        number, unit = (value[:-1], value[-1].upper()) if value[-1:].upper() in _SIZE_UNITS else (value, "")
        if not (number.isascii() and number.isdecimal() and len(number) <= _MAX_SIZE_DIGITS and int(number)):
            self.fail(f"{value!r} is not a size: try 512M or 2G", param, ctx)
        size = int(number) * _SIZE_UNITS.get(unit, 1)
        if size < MIN_BYTES:
            self.fail(f"{value!r} is too small: the minimum is {MIN_BYTES >> 20}M", param, ctx)
        return size


def _read_config(ctx: click.Context, _param: click.Parameter, path: Path | None) -> Path | None:
    """Use the options in a file as defaults of the command.

    During a reload, `ctx.obj` holds the defaults that the daemon started with. Otherwise it is None.
    """
    if path is not None:
        try:
            defaults = read_defaults(path, ctx.command)
            for name, option in _FIXED_OPTIONS.items():
                if ctx.obj is not None and defaults.get(name) != ctx.obj.get(name):
                    raise click.UsageError(f"{path}: {option} cannot change while the daemon runs: restart it")
        except click.UsageError as error:
            error.ctx = ctx
            raise
        ctx.default_map = defaults
    return path


@click.command(
    "serve", cls=_ServeCommand, short_help="Run the daemon: metrics, API, event stream and web page."
)
@click.option(
    "--listen",
    type=_AddressType(),
    multiple=True,
    default=(str(DEFAULT_ADDRESS),),
    help="HOST:PORT or unix:PATH.  [default: 127.0.0.1:9935]",
)
@click.option(
    "--journal",
    type=click.Path(path_type=Path),
    help="Write every event to this file.",
    cls=SectionOption,
    section=JOURNAL,
)
@click.option(
    "--journal-age",
    type=Seconds(min=1, max=_CENTURY),
    default=_MONTH,
    metavar="SECONDS",
    help="Delete events older than this.  [default: 30 days]",
    cls=SectionOption,
    section=JOURNAL,
)
@click.option(
    "--journal-size",
    type=_SizeType(),
    default="256M",
    help="Delete the oldest events when the file is larger.  [default: 256M]",
    cls=SectionOption,
    section=JOURNAL,
)
@click.option(
    "--expect",
    type=PortType(needs_proto=True),
    multiple=True,
    help="Export a metric that is 0 while this port is closed.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    callback=_read_config,
    help="Read options from a TOML file.",
)
@click.option("--check", is_flag=True, help="Check options and configuration, then exit.")
@click.option(
    "--log",
    "log_format",
    type=click.Choice(["text", "json"]),
    default="text",
    help="Format of the events on stdout and the log on stderr.",
)
@click.option(
    "--host", "hosts", multiple=True, metavar="NAME", help="Also accept HTTP requests for this host name."
)
@click.option(
    "--metrics-pid",
    is_flag=True,
    help="Add the label pid to the series of each port.",
    cls=SectionOption,
    section=METRICS,
)
@click.option(
    "--metrics-ephemeral",
    is_flag=True,
    help="Give every ephemeral port its own series.",
    cls=SectionOption,
    section=METRICS,
)
@click.option(
    "--metrics-max-series",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    metavar="N",
    help="Limit port series to N.",
    cls=SectionOption,
    section=METRICS,
)
@scope_options()
@engine_option
@ephemeral_option
@interval_option
@no_failures_option
@click.pass_context
def command(ctx: click.Context, /, check: bool, log_format: str, config: Path | None, **options: Any) -> None:
    """Run the daemon: metrics, API, event stream and web page. See docs/serve.md.

    Example: portwatch serve --expect tcp/8080 --journal /var/lib/portwatch.db
    """
    settings = _settings(**options)
    if check:
        click.echo(f"{config} is valid" if config else "the options are valid")
        return
    as_json = log_format == "json"
    logging.basicConfig(level=logging.WARNING, handlers=[stderr_handler(as_json=as_json)])
    log.setLevel(logging.INFO)
    try:
        _run(ctx, settings, as_json=as_json)
    except PortwatchError as error:
        if not as_json:
            raise
        log.error("%s", error)
        ctx.exit(exit_code(error))


def _run(ctx: click.Context, settings: Settings, *, as_json: bool) -> None:
    # Imported here because the import takes 250 ms, and --check does not need it.
    from portwatch.server.daemon import Daemon

    event_log = EventLog(sys.stdout, Event.to_json if as_json else event_line)
    daemon = Daemon(
        settings,
        event_log,
        load_settings=partial(_reload_settings, ctx),
        on_engine=partial(report_fallback, report=log.warning),
    )
    try:
        daemon.run()
    finally:
        event_log.close(_LOG_CLOSE_TIMEOUT)
    if daemon.is_opening_engine:
        os._exit(0)  # a thread may be running clang, and would crash while the interpreter shuts down


def _reload_settings(ctx: click.Context) -> Settings:
    """Parse the arguments and read the configuration file again. Raise PortwatchError if they are invalid."""
    try:
        with ctx.command.make_context("serve", list(ctx.meta[_ARGUMENTS]), obj=ctx.default_map) as reloaded:
            return _settings(
                **{name: value for name, value in reloaded.params.items() if name not in _NOT_SETTINGS}
            )
    except click.UsageError as error:
        raise PortwatchError(error.format_message()) from None


def _settings(
    listen: tuple[sockets.Address, ...],
    journal: Path | None,
    journal_age: float,
    journal_size: int,
    expect: tuple[Port, ...],
    hosts: tuple[str, ...],
    no_failures: bool,
    metrics_pid: bool,
    metrics_ephemeral: bool,
    metrics_max_series: int,
    engine: str,
    ephemeral: bool,
    interval: float,
    **scope: Any,
) -> Settings:
    """Return the settings. Raise click.UsageError if the options contradict each other."""
    watched = pop_scope(scope)
    expected = tuple(Expected(port.protos[0], port.number) for port in dict.fromkeys(expect))
    _require_distinct(listen)
    for port in expected:
        _require_watched(port, watched)
    return Settings(
        listen=listen,
        hosts=hosts,
        engine=engine,
        options=Options(failures=not no_failures, ephemeral=ephemeral, interval=interval),
        scope=watched,
        pids=pop_pids(scope),
        expected=expected,
        journal=JournalSettings(journal, journal_age, journal_size) if journal else None,
        metrics=MetricsSettings(metrics_pid, metrics_ephemeral, metrics_max_series),
    )


def _require_distinct(addresses: tuple[sockets.Address, ...]) -> None:
    if not addresses:
        raise click.UsageError("listen is empty: give at least one address, such as 127.0.0.1:9935")
    repeated = [str(address) for address, count in Counter(addresses).items() if count > 1]
    if repeated:
        raise click.UsageError(f"listen has the same address twice: {', '.join(repeated)}")


def _require_watched(expected: Expected, watched: Scope) -> None:
    ports, protos = watched.kernel_filter.ports, watched.kernel_filter.protos
    if (ports is None or ports >> expected.port & 1) and (protos is None or expected.proto in protos):
        return
    raise click.UsageError(
        f"{expected.proto}/{expected.port} is expected but not watched: --port or --proto excludes it, so it "
        "would always be reported as closed"
    )
