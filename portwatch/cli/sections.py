"""Help in sections: every option is shown, under the heading that it belongs to."""

from __future__ import annotations

from typing import Any

import click

FILTERS = "Filters (repeat an option, or separate values by commas)"
ENGINE = "Engine"
JOURNAL = "Journal"
METRICS = "Metrics"

_COLUMN_MAX = 40
"""Characters of the widest first column: `--exposure, --not-exposure EXPOSURE` and its indent."""


class SectionOption(click.Option):
    """An option in a section of the help."""

    def __init__(self, *args: Any, section: str, exclude: str | None = None, **kwargs: Any) -> None:
        """`exclude` is the name of the option that excludes the same values: both are shown in one row."""
        super().__init__(*args, **kwargs)
        self.section = section
        self._exclude = exclude

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the row of the help."""
        record = super().get_help_record(ctx)
        if record is None or self._exclude is None:
            return record
        names, metavar = record[0].split(" ", 1)
        return f"{names}, {self._exclude} {metavar}", record[1]


class ExcludeOption(click.Option):
    """A `--not-` option. It has no row of its own: it is shown with the option whose values it excludes."""

    def get_help_record(self, ctx: click.Context) -> None:  # click's signature
        """Return no row."""


class SectionedCommand(click.Command):
    """A command whose help has its own options first, then those of each section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                section = param.section if isinstance(param, SectionOption) else "Options"
                sections.setdefault(section, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records, col_max=_COLUMN_MAX)
