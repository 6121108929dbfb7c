"""Finds out what this machine allows, and which engines work on it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from portwatch.engines import machine, poll
from portwatch.engines.bcc import diagnosis as bcc
from portwatch.engines.choice import ENGINES, choose
from portwatch.engines.core import diagnosis as core
from portwatch.engines.diagnosis import Fact
from portwatch.engines.limits import Limit
from portwatch.engines.protocol import Options
from portwatch.errors import EngineUnavailable
from portwatch.linux import capabilities

_DIAGNOSES = (machine.diagnose, core.diagnose, bcc.diagnose, poll.diagnose)


@dataclass(frozen=True, slots=True)
class Trial:
    """The result of an attempt to attach an engine."""

    engine: str
    works: bool
    refusal: str | None = None
    hooks: str | None = None
    why: str | None = None
    """The reason why better hooks are not used, or None if the best hooks are used."""
    limits: tuple[Limit, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that doctor found."""

    facts: tuple[Fact, ...]
    capabilities: dict[str, bool]
    trials: tuple[Trial, ...]
    """The tested engines, most preferred first."""
    requested: str = "auto"
    """The name of the requested engine, or "auto"."""

    @property
    def taken(self) -> Trial | None:
        """The first engine that works."""
        return next((trial for trial in self.trials if trial.works), None)

    @property
    def verdict(self) -> str:
        """A clause that says which engine is used."""
        if not self.taken:
            return (
                "no engine works here" if self.requested == "auto" else f"{self.requested} does not work here"
            )
        return f"auto selects {self.taken.engine}" if self.requested == "auto" else f"{self.requested} is used"

    @property
    def why(self) -> str:
        """A clause that gives the reason for the verdict."""
        refusals = [
            f"{trial.engine} cannot run here ({trial.refusal})" for trial in self._trials_before_taken()
        ]
        if refusals:
            return "; ".join(refusals)
        return "it is the first choice and works" if self.requested == "auto" else "it was requested and works"

    def as_dict(self) -> dict[str, Any]:
        """Return the report as `portwatch doctor --json` prints it."""
        return {
            "engine": self.taken.engine if self.taken else None,
            "why": self.why,
            "facts": [asdict(fact) for fact in self.facts],
            "capabilities": self.capabilities,
            "engines": [
                {
                    "engine": trial.engine,
                    "works": trial.works,
                    "refusal": trial.refusal,
                    "hooks": trial.hooks,
                    "why": trial.why,
                    "limits": [{"name": limit.name, "text": limit.text} for limit in trial.limits],
                }
                for trial in self.trials
            ],
        }

    def _trials_before_taken(self) -> tuple[Trial, ...]:
        return self.trials[: self.trials.index(self.taken)] if self.taken else self.trials


def examine(engine: str = "auto") -> Report:
    """Run every check. Then attach and detach this engine, or each of the engines if `engine` is "auto"."""
    return Report(
        tuple(fact for diagnose in _DIAGNOSES for fact in diagnose()),
        _effective_capabilities(),
        tuple(_try(name) for name in (ENGINES if engine == "auto" else (engine,))),
        engine,
    )


def _try(name: str) -> Trial:
    try:
        engine = choose(name, Options(), prove=lambda candidate: candidate.attach()).engine
    except EngineUnavailable as error:
        return Trial(name, False, str(error))
    info = engine.info
    engine.detach()
    return Trial(name, True, None, info.hooks, info.why, info.limits)


def _effective_capabilities() -> dict[str, bool]:
    try:
        effective = capabilities.effective()
    except OSError:
        return {}  # the check "capabilities" reports the error
    return {right.name: capabilities.has(right, effective) for right in capabilities.ALL}
