"""What the daemon is told, by its options or its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from portwatch.engines.protocol import Options
from portwatch.filters.filter import Filter
from portwatch.filters.scope import Scope
from portwatch.server.sockets import Address

DEFAULT_ADDRESS = Address("127.0.0.1", 9935)


class Expected(NamedTuple):
    """A port that somebody counts on."""

    proto: str
    port: int


@dataclass(frozen=True, slots=True)
class JournalSettings:
    """What is kept on disk, and how much of it."""

    path: Path
    max_age: float
    """Seconds."""
    max_bytes: int


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """What the metrics show of each port."""

    pid: bool = False
    ephemeral: bool = False
    max_series: int = 10_000


@dataclass(frozen=True, slots=True)
class Settings:
    """All of it."""

    listen: tuple[Address, ...] = (DEFAULT_ADDRESS,)
    hosts: tuple[str, ...] = ()
    """Names by which we are called, besides localhost and numbers."""
    engine: str = "auto"
    options: Options = field(default_factory=Options)
    scope: Scope = field(default_factory=Scope)
    pids: Filter[int] = field(default_factory=Filter)
    expected: tuple[Expected, ...] = ()
    journal: JournalSettings | None = None
    metrics: MetricsSettings = field(default_factory=MetricsSettings)

    @property
    def kept(self) -> dict[str, object]:
        """What stays as it is while it runs, by the names of its options."""
        journal = self.journal
        return {
            "listen": self.listen,
            "host": self.hosts,
            "engine": self.engine,
            "no-failures": not self.options.failures,
            "ephemeral": self.options.ephemeral,
            "interval": self.options.interval,
            "journal": journal and journal.path,
            "journal-age": journal and journal.max_age,
            "journal-size": journal and journal.max_bytes,
        }
