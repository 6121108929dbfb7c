"""The command `portwatch doctor`."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator

import click

from portwatch.cli.exit_codes import FAILED
from portwatch.cli.options import procfs_option
from portwatch.cli.render.terminal import terminal_width, use_color
from portwatch.cli.render.text import printable
from portwatch.cli.sections import SectionedCommand
from portwatch.engines import ENGINES
from portwatch.engines.doctor import Report, Trial, examine

_STATE_COLORS = {"ok": "green", "limited": "yellow", "not ok": "red"}
_NAME_WIDTH, _STATE_WIDTH = 13, 8
_INDENT = " " * (_NAME_WIDTH + _STATE_WIDTH)


@click.command("doctor", cls=SectionedCommand, short_help="Check which engines work here, and their limits.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.option(
    "--engine",
    type=click.Choice(["auto", *ENGINES]),
    default="auto",
    metavar="ENGINE",
    help=f"Test only this engine: {', '.join(ENGINES)}.  [default: test all]",
)
@procfs_option
def command(as_json: bool, engine: str) -> None:
    """Check which engines work on this machine. Print which engine portwatch uses,
    why, and what this engine cannot see.

    To test an engine, doctor loads it briefly. With --engine, it tests only that
    engine. It exits with 1 if no engine works.

    Example: sudo portwatch doctor
    """
    report = examine(engine)
    if as_json:
        from json import dumps  # imported here because the import takes 7 ms

        click.echo(dumps(report.as_dict()))
    else:
        for line in _report_lines(report, terminal_width()):
            click.echo(line, color=use_color())
    sys.exit(0 if report.taken else FAILED)


def _report_lines(report: Report, width: int | None) -> Iterator[str]:
    for fact in report.facts:
        yield from _row(fact.name, fact.state, fact.text, width)
        if fact.help:
            yield from _row("", "", f"hint: {fact.help}", width)
    yield ""
    for trial in report.trials:
        yield from _row(trial.engine, "ok" if trial.works else "not ok", _outcome(trial), width)
        for limit in trial.limits:
            yield from _row("", "", f"limit: {limit.text}", width)
    yield ""
    yield from _wrapped(f"{report.verdict}: {report.why}", width, "")


def _outcome(trial: Trial) -> str:
    if not trial.works:
        return trial.refusal or ""
    return f"works, with hooks: {trial.hooks}" + (f" ({trial.why})" if trial.why else "")


def _row(name: str, state: str, text: str, width: int | None) -> Iterator[str]:
    first, *rest = _wrapped(text, width, _INDENT)
    color = _STATE_COLORS.get(state)
    colored_state = click.style(state.ljust(_STATE_WIDTH), fg=color) if state else " " * _STATE_WIDTH
    yield f"{name:<{_NAME_WIDTH}}{colored_state}{first.removeprefix(_INDENT)}"
    yield from rest


def _wrapped(text: str, width: int | None, indent: str) -> list[str]:
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
