"""Which engine runs here: the one that is asked for, or the best that works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from portwatch.engines.protocol import Engine, Options
from portwatch.errors import EngineUnavailable, NotPermitted, WrongUse


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine, and why the better ones were not taken."""

    engine: Engine
    refusals: dict[str, EngineUnavailable] = field(default_factory=dict)


def _core(options: Options) -> Engine:
    from portwatch.engines.core.engine import CoreEngine

    return CoreEngine(failures=options.failures, ephemeral=options.ephemeral, hooks=options.hooks)


def _bcc(options: Options) -> Engine:
    from portwatch.engines.bcc.engine import BccEngine

    return BccEngine(failures=options.failures, ephemeral=options.ephemeral)


def _poll(options: Options) -> Engine:
    from portwatch.engines.poll import PollEngine

    return PollEngine(interval=options.interval)


ENGINES: dict[str, Callable[[Options], Engine]] = {"core": _core, "bcc": _bcc, "poll": _poll}
"""The best first. Each is imported when it is wanted."""


def choose(name: str, options: Options, prove: Callable[[Engine], object]) -> Choice:
    """The engine of that name, or the best that works for "auto".

    An engine works if `prove`, which is given it and uses it, does not raise EngineUnavailable.
    Raises WrongUse where there is no such engine, or none with the hooks that are asked for.
    """
    if name not in ("auto", *ENGINES):
        raise WrongUse(f"there is no engine {name!r}: auto, {', '.join(ENGINES)} are the ones to choose from")
    if options.hooks != "auto":
        name = _engine_with(options.hooks, name)
    refusals: dict[str, EngineUnavailable] = {}
    for candidate in ENGINES if name == "auto" else (name,):
        try:
            engine = ENGINES[candidate](options)
        except (EngineUnavailable, OSError) as error:
            refusals[candidate] = _refusal(error)
            continue
        try:
            prove(engine)
        except (EngineUnavailable, OSError) as error:
            engine.detach()
            refusals[candidate] = _refusal(error)
            continue
        return Choice(engine, refusals)
    if name in refusals:
        raise refusals[name]
    kind = type(next(reversed(refusals.values())))
    raise kind("no engine works here: " + "; ".join(f"{one}: {error}" for one, error in refusals.items()))


def _engine_with(hooks: str, name: str) -> str:
    from portwatch.engines.core.hooks import HOOK_SETS

    if hooks not in HOOK_SETS:
        raise WrongUse(
            f"there are no hooks {hooks!r}: auto, {', '.join(HOOK_SETS)} are the ones to choose from"
        )
    if name not in ("auto", "core"):
        raise WrongUse(f"hooks are chosen for the core engine only, and {name} was asked for")
    return "core"


def _refusal(error: EngineUnavailable | OSError) -> EngineUnavailable:
    if isinstance(error, EngineUnavailable):
        return error
    kind = NotPermitted if isinstance(error, PermissionError) else EngineUnavailable
    return kind(f"the system refuses what it needs ({error}); portwatch doctor shows what this machine allows")
