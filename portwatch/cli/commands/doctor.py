"""portwatch doctor."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator

import click

from portwatch.cli.options import engine_option, procfs_option
from portwatch.cli.render.terminal import terminal_width
from portwatch.cli.render.text import printable
from portwatch.engines.doctor import Report, Trial, examine

_COLOURS = {"ok": "green", "limited": "yellow", "not ok": "red"}
_NAME, _STATE = 13, 8
_INDENT = " " * (_NAME + _STATE)


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
@engine_option
@procfs_option
def command(as_json: bool, engine: str) -> None:
    """What this machine allows, which engine is taken and why, and what it cannot see.

    Every engine, or the one that is asked for, is tried: attached for a moment, and
    taken out again. Exits with 1 if none works.

    Example: sudo portwatch doctor
    """
    report = examine(engine)
    if as_json:
        from json import dumps  # 7 ms, for those who ask for it

        click.echo(dumps(report.as_dict()))
    else:
        plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        for line in _lines(report, terminal_width()):
            click.echo(line, color=False if plain else None)
    sys.exit(0 if report.taken else 1)


def _lines(report: Report, width: int | None) -> Iterator[str]:
    for fact in report.facts:
        yield from _row(fact.name, fact.state, fact.text, width)
        if fact.help:
            yield from _row("", "", f"what would help: {fact.help}", width)
    yield ""
    for trial in report.trials:
        state, text = _outcome(trial)
        yield from _row(trial.engine, state, text, width)
        for limit in trial.limits:
            yield from _row("", "", f"limit: {limit.text}", width)
    yield ""
    yield from _folded(f"{report.verdict}: {report.why}", width, "")


def _outcome(trial: Trial) -> tuple[str, str]:
    if not trial.works:
        return "not ok", trial.refusal or ""
    return "ok", f"works, on the hooks: {trial.hooks}" + (f" ({trial.why})" if trial.why else "")


def _row(name: str, state: str, text: str, width: int | None) -> Iterator[str]:
    first, *rest = _folded(text, width, _INDENT)
    shown = click.style(state.ljust(_STATE), fg=_COLOURS.get(state)) if state else " " * _STATE
    yield f"{name:<{_NAME}}{shown}{first.removeprefix(_INDENT)}"
    yield from rest


def _folded(text: str, width: int | None, indent: str) -> list[str]:
    text = printable(text)
    if width is None:
        return [indent + text]
    return textwrap.wrap(
        text,
        max(width, len(indent) + 20),
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )
