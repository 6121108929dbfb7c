"""Write the table of the engines' limits, as the engines declare them, into docs/engines.md."""

from pathlib import Path

from portwatch.engines.bcc.hooks import KPROBES_LIMITS
from portwatch.engines.common_hooks import STABLE_LIMITS
from portwatch.engines.core.hooks import HOOK_SETS
from portwatch.engines.limits import OUTSIDE, Limit
from portwatch.engines.poll import LIMITS

DOCUMENT = Path(__file__).parent.parent / "docs" / "engines.md"
BEGIN, END = "<!-- engines: scripts/engines_table.py writes this table -->\n", "<!-- /engines -->\n"

ENGINES: dict[str, tuple[Limit, ...]] = {
    **{f"core {hooks.name}": hooks.limits for hooks in HOOK_SETS.values()},
    "bcc kprobes": KPROBES_LIMITS,
    "bcc stable": STABLE_LIMITS,
    "poll": LIMITS,
}
BEFORE_5_12: dict[str, tuple[Limit, ...]] = {
    **{f"core {hooks.name}": hooks.without_socket_helpers for hooks in HOOK_SETS.values()},
    "bcc kprobes": (OUTSIDE,),
    "bcc stable": (OUTSIDE,),
}


def table() -> str:
    """Return the table as Markdown."""
    limits_of_all = (*ENGINES.values(), *BEFORE_5_12.values())
    limits = list(dict.fromkeys(limit for engine_limits in limits_of_all for limit in engine_limits))
    lines = [
        "| limit | " + " | ".join(f"`{name}`" for name in ENGINES) + " |",
        "|---|" + ":-:|" * len(ENGINES),
    ]
    for limit in limits:
        marks = " | ".join(_mark(limit, engine) for engine in ENGINES)
        lines.append(f"| {limit.text} | {marks} |")
    return "\n".join(lines) + "\n"


def _mark(limit: Limit, engine: str) -> str:
    if limit in ENGINES[engine]:
        return "yes"
    return "before 5.12" if limit in BEFORE_5_12.get(engine, ()) else "-"


def main() -> None:
    """Replace the table between the two comment lines in the document."""
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(before + BEGIN + table() + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
