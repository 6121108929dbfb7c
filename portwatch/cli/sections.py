"""Help texts in sections. Each option is shown under the heading of its section."""

from __future__ import annotations

from typing import Any

import click

FILTERS = "Filters (repeat an option for several values; all but --pid also take a,b)"
ENGINE = "Engine"
JOURNAL = "Journal"
METRICS = "Metrics"

_COLUMN_MAX = 40
"""Maximum width of the first column: enough for `--exposure, --not-exposure EXPOSURE`."""


class SectionOption(click.Option):
    """An option in a section of the help."""

    def __init__(self, *args: Any, section: str, exclude: str | None = None, **kwargs: Any) -> None:
        """If `exclude` is the name of the `--not-` form, the help shows both options in one row."""
        super().__init__(*args, **kwargs)
        self.section = section
        self._exclude = exclude

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the row of this option in the help."""
        record = super().get_help_record(ctx)
        if record is None or self._exclude is None:
            return record
        names, metavar = record[0].split(" ", 1)
        return f"{names}, {self._exclude} {metavar}", record[1]


class ExcludeOption(click.Option):
    """A `--not-` option. The help shows it in the row of the option without `--not-`."""

    def get_help_record(self, ctx: click.Context) -> None:
        """Return no row."""


class SectionedCommand(click.Command):
    """A command whose help shows the options without a section first, then section after section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options to the help. Arguments have no row: the text above the options describes them."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                section = param.section if isinstance(param, SectionOption) else "Options"
                sections.setdefault(section, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records, col_max=_COLUMN_MAX)
