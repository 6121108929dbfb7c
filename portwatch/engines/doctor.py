"""What this machine allows, and which engine that makes possible."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import chain
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
    """What came of really attaching an engine."""

    engine: str
    works: bool
    refusal: str | None = None
    hooks: str | None = None
    why: str | None = None
    """Why on these hooks and not on better ones."""
    limits: tuple[Limit, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """All that doctor knows."""

    facts: tuple[Fact, ...]
    capabilities: dict[str, bool]
    trials: tuple[Trial, ...]
    asked: str = "auto"
    """The engine that it is about, if it is about one."""

    @property
    def taken(self) -> Trial | None:
        """The engine that is taken: the first that works."""
        return next((trial for trial in self.trials if trial.works), None)

    @property
    def verdict(self) -> str:
        """Which engine is taken."""
        if not self.taken:
            return "no engine works here" if self.asked == "auto" else f"{self.asked} does not work here"
        return f"auto takes {self.taken.engine}" if self.asked == "auto" else f"{self.asked} is taken"

    @property
    def why(self) -> str:
        """Why that one."""
        refused = [f"{trial.engine} cannot run here ({trial.refusal})" for trial in self._before_taken()]
        if refused:
            return "; ".join(refused)
        return f"it is {'the first choice' if self.asked == 'auto' else 'what was asked for'}, and works"

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
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

    def _before_taken(self) -> tuple[Trial, ...]:
        return self.trials[: self.trials.index(self.taken)] if self.taken else self.trials


def examine(engine: str = "auto") -> Report:
    """Check everything, then try every engine, or the one that is asked for."""
    return Report(
        tuple(chain.from_iterable(diagnose() for diagnose in _DIAGNOSES)),
        _held_capabilities(),
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


def _held_capabilities() -> dict[str, bool]:
    try:
        held = capabilities.effective()
    except OSError:
        return {}  # the fact of that name says why
    return {one.name: capabilities.has(one, held) for one in capabilities.ALL}
