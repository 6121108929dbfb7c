"""Selects the requested engine, or the best engine that works on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from portwatch.engines.core.hooks import HOOK_SETS
from portwatch.engines.permissions import ASK_DOCTOR
from portwatch.engines.protocol import Engine, Options
from portwatch.errors import EngineUnavailable, NotPermitted, WrongUse


@dataclass(frozen=True, slots=True)
class Choice:
    """The selected engine, and the reason why each better engine cannot run."""

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
"""The engines by name, best first. Each function imports its engine only when it is called."""


def choose(name: str, options: Options, prove: Callable[[Engine], object]) -> Choice:
    """Return the engine called `name`. If `name` is "auto", return the best engine that works.

    `prove` tests a candidate by using it. If `prove` raises EngineUnavailable or OSError, the candidate does
    not work and is detached.

    Raise EngineUnavailable or NotPermitted if no candidate works. Raise WrongUse if `name` or the requested
    hooks are unknown.
    """
    if name not in ("auto", *ENGINES):
        raise WrongUse(f"unknown engine {name!r}: choose one of auto, {', '.join(ENGINES)}")
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
    raise kind("no engine works here: " + "; ".join(f"{engine}: {error}" for engine, error in refusals.items()))


def _engine_with(hooks: str, name: str) -> str:
    if hooks not in HOOK_SETS:
        raise WrongUse(f"unknown hooks {hooks!r}: choose one of auto, {', '.join(HOOK_SETS)}")
    if name not in ("auto", "core"):
        raise WrongUse(f"only the core engine lets you choose its hooks, and the engine requested is {name}")
    return "core"


def _refusal(error: EngineUnavailable | OSError) -> EngineUnavailable:
    if isinstance(error, EngineUnavailable):
        return error
    kind = NotPermitted if isinstance(error, PermissionError) else EngineUnavailable
    return kind(f"the system refuses an operation that the engine needs ({error}); {ASK_DOCTOR}")
