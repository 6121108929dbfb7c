"""Prints the README's table of what each engine does not see, from what the engines say of themselves."""

from portwatch.engines.bcc.hooks import KPROBES_LIMITS, STABLE_LIMITS
from portwatch.engines.core.hooks import HOOK_SETS
from portwatch.engines.limits import OUTSIDE, Limit
from portwatch.engines.poll import LIMITS

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
    """The table, as Markdown."""
    of_all = (*ENGINES.values(), *BEFORE_5_12.values())
    limits = list(dict.fromkeys(limit for own in of_all for limit in own))
    lines = [
        "| what is not seen as it happens | " + " | ".join(f"`{name}`" for name in ENGINES) + " |",
        "|---|" + ":-:|" * len(ENGINES),
    ]
    for limit in limits:
        marks = " | ".join(_mark(limit, engine) for engine in ENGINES)
        lines.append(f"| {limit.text} | {marks} |")
    return "\n".join(lines)


def _mark(limit: Limit, engine: str) -> str:
    if limit in ENGINES[engine]:
        return "not"
    return "not before 5.12" if limit in BEFORE_5_12.get(engine, ()) else "seen"


if __name__ == "__main__":
    print(table())
