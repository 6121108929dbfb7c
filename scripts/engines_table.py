"""Prints the README's table of what each engine does not see, from what the engines say of themselves."""

from portwatch.engines.bcc.hooks import KPROBES_LIMITS, STABLE_LIMITS
from portwatch.engines.capabilities import Limit
from portwatch.engines.core.hooks import HOOK_SETS
from portwatch.engines.poll import LIMITS

ENGINES: dict[str, tuple[Limit, ...]] = {
    **{f"core {hooks.name}": hooks.limits for hooks in HOOK_SETS.values()},
    "bcc kprobes": KPROBES_LIMITS,
    "bcc stable": STABLE_LIMITS,
    "poll": LIMITS,
}


def table() -> str:
    """The table, as Markdown."""
    limits = list(dict.fromkeys(limit for own in ENGINES.values() for limit in own))
    lines = [
        "| what is not seen as it happens | " + " | ".join(f"`{name}`" for name in ENGINES) + " |",
        "|---|" + ":-:|" * len(ENGINES),
    ]
    for limit in limits:
        marks = " | ".join("not" if limit in own else "seen" for own in ENGINES.values())
        lines.append(f"| {limit.text} | {marks} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
