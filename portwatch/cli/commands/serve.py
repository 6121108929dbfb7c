"""portwatch serve."""

from __future__ import annotations

import json
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from portwatch.cli.config import defaults_from
from portwatch.cli.exit_codes import code_of
from portwatch.cli.options import (
    Seconds,
    engine_option,
    ephemeral_option,
    interval_option,
    pids_of,
    say_fallback,
    scope_of,
    scope_options,
)
from portwatch.cli.render.text import event_line
from portwatch.engines.protocol import Options
from portwatch.errors import PortwatchError
from portwatch.event import Event
from portwatch.filters.parsing import PROTOCOLS
from portwatch.filters.scope import Scope
from portwatch.outputs.log import EventLog
from portwatch.server import sockets
from portwatch.server.settings import DEFAULT_ADDRESS, Expected, JournalSettings, MetricsSettings, Settings
from portwatch.timestamps import iso_time

log = logging.getLogger("portwatch")

_DAY = 86_400
_MONTH, _CENTURY = 30 * _DAY, 36_525 * _DAY
_DIGITS = 15
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


_ARGUMENTS = "portwatch.arguments"
_OF_THE_RUN = ("check", "form", "config")
_KEPT = {"form": "log", "procfs": "procfs"}
"""What the file says for the whole run, and what it is called there."""
_LAST_LINES = 0.3
"""Seconds for the last lines of the log to be read."""


class _Serve(click.Command):
    """Keeps its arguments, which a reload reads once more."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = tuple(args)
        return super().parse_args(ctx, args)


class _Address(click.ParamType):
    name = "ADDRESS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, sockets.Address):
            return value
        try:
            return sockets.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Expected(click.ParamType):
    name = "PROTO/PORT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, Expected):
            return value
        proto, _, number = value.partition("/")
        if proto not in PROTOCOLS or not (
            number.isascii() and number.isdecimal() and len(number) <= 5 and 0 < int(number) <= 65_535
        ):
            self.fail(f"{value!r} is no port of a protocol: try tcp/8080", param, ctx)
        return Expected(proto, int(number))


class _Size(click.ParamType):
    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from portwatch.outputs.journal.writer import MIN_BYTES  # sqlite3: 11 ms, for those who type it right

        if isinstance(value, int):
            return value
        number, unit = (value[:-1], value[-1].upper()) if value[-1:].upper() in _UNITS else (value, "")
        if not (number.isascii() and number.isdecimal() and len(number) <= _DIGITS and int(number)):
            self.fail(f"{value!r} is no size: try 512M or 2G", param, ctx)
        size = int(number) * _UNITS.get(unit, 1)
        if size < MIN_BYTES:
            self.fail(f"{value!r} holds too little: {MIN_BYTES >> 20}M is the least", param, ctx)
        return size


def _read_config(ctx: click.Context, _param: click.Parameter, path: Path | None) -> Path | None:
    if path is not None:
        try:
            defaults = defaults_from(path, ctx.command)
            for name, called in _KEPT.items():
                if ctx.obj is not None and defaults.get(name) != ctx.obj.get(name):
                    raise click.UsageError(f"{path}: {called} cannot change while it runs: restart it")
        except click.UsageError as error:
            error.ctx = ctx
            raise
        ctx.default_map = defaults
    return path


@click.command("serve", cls=_Serve)
@click.option(
    "--listen",
    type=_Address(),
    multiple=True,
    default=(str(DEFAULT_ADDRESS),),
    help="Also unix:PATH. [127.0.0.1:9935]",
)
@click.option("--journal", type=click.Path(path_type=Path), help="Keeps every event in this file.")
@click.option(
    "--journal-age", type=Seconds(min=1, max=_CENTURY), default=_MONTH, metavar="SECONDS", hidden=True
)
@click.option("--journal-size", type=_Size(), default="256M", hidden=True)
@click.option("--expect", type=_Expected(), multiple=True, help="A port that somebody counts on.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    callback=_read_config,
    help="Options from a TOML file.",
)
@click.option("--check", is_flag=True, help="Says whether all this is right, and ends.")
@click.option(
    "--log", "form", type=click.Choice(["text", "json"]), default="text", help="Each change is a line of it."
)
@click.option("--host", "hosts", multiple=True, hidden=True)
@click.option("--no-failures", is_flag=True, hidden=True)
@click.option("--metrics-pid", is_flag=True, hidden=True)
@click.option("--metrics-ephemeral", is_flag=True, hidden=True)
@click.option("--metrics-max-series", type=click.IntRange(min=1), default=10_000, metavar="N", hidden=True)
@scope_options(hidden=("pid",))
@engine_option
@ephemeral_option(hidden=True)
@interval_option(hidden=True)
@click.pass_context
def command(ctx: click.Context, /, check: bool, form: str, config: Path | None, **options: Any) -> None:
    """The daemon: metrics, API, stream and page. More in docs/serve.md.

    Example: portwatch serve --expect tcp/8080 --journal /var/lib/portwatch.db
    """
    settings = _settings(**options)
    if check:
        click.echo(f"{config} is good" if config else "all this is right")
        return
    from portwatch.server.daemon import Daemon  # 250 ms, which --check and --help need not pay

    logging.basicConfig(format="portwatch: %(message)s", level=logging.WARNING, handlers=[_handler(form)])
    log.setLevel(logging.INFO)
    arguments = ctx.meta[_ARGUMENTS]

    def read_again() -> Settings:
        """As at the start, with what the file says by now."""
        try:
            with command.make_context("serve", list(arguments), obj=ctx.default_map) as again:
                params = {name: value for name, value in again.params.items() if name not in _OF_THE_RUN}
                return _settings(**params)
        except click.UsageError as error:
            raise PortwatchError(error.format_message()) from None

    changes = EventLog(sys.stdout, Event.to_json if form == "json" else event_line)
    daemon = Daemon(settings, changes, read_again=read_again, started=partial(say_fallback, say=log.warning))
    try:
        daemon.run()
    except PortwatchError as error:
        if form != "json":
            raise
        log.error("%s", error)
        ctx.exit(code_of(error))
    finally:
        changes.close(_LAST_LINES)
    if daemon.is_opening:
        os._exit(0)  # a compiler at work in its thread would not survive that the interpreter cleans up


def _settings(
    listen: tuple[sockets.Address, ...],
    journal: Path | None,
    journal_age: float,
    journal_size: int,
    expect: tuple[Expected, ...],
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
    if not listen:
        raise click.UsageError("listen is empty: without an address, nobody could ask")
    if len(set(listen)) < len(listen):
        raise click.UsageError(f"one address is given twice, of {', '.join(map(str, listen))}")
    wanted = scope_of(scope)
    for one in expect:
        if not _is_seen(one, wanted):
            raise click.UsageError(
                f"{one.proto}/{one.port} is expected, and outside of what is watched: it would never be up"
            )
    return Settings(
        listen=listen,
        hosts=hosts,
        engine=engine,
        options=Options(failures=not no_failures, ephemeral=ephemeral, interval=interval),
        scope=wanted,
        pids=pids_of(scope),
        expected=tuple(dict.fromkeys(expect)),
        journal=JournalSettings(journal, journal_age, journal_size) if journal else None,
        metrics=MetricsSettings(metrics_pid, metrics_ephemeral, metrics_max_series),
    )


def _is_seen(expected: Expected, scope: Scope) -> bool:
    ports, protos = scope.kernel_filter.ports, scope.kernel_filter.protos
    return (ports is None or bool(ports >> expected.port & 1)) and (protos is None or expected.proto in protos)


def _handler(form: str) -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(_JsonFormatter())
    return handler


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": iso_time(int(record.created * 1e9)),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields)
