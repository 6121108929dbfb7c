"""The daemon's settings, from its options and its configuration file."""

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
    """A port that should be open (`--expect`)."""

    proto: str
    port: int


@dataclass(frozen=True, slots=True)
class JournalSettings:
    """The journal's path and limits."""

    path: Path
    max_age: float
    """Seconds for which an event is kept."""
    max_bytes: int


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """Options for the metrics about single ports (`--metrics-...`)."""

    pid: bool = False
    """Add the label `pid`."""
    ephemeral: bool = False
    """Give every port in net.ipv4.ip_local_port_range its own series."""
    max_series: int = 10_000


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of the daemon."""

    listen: tuple[Address, ...] = (DEFAULT_ADDRESS,)
    hosts: tuple[str, ...] = ()
    """Names accepted in the Host header, besides IP addresses, localhost and this machine's host name."""
    engine: str = "auto"
    options: Options = field(default_factory=Options)
    scope: Scope = field(default_factory=Scope)
    pids: Filter[int] = field(default_factory=Filter)
    """The roots of the included and excluded process trees."""
    expected: tuple[Expected, ...] = ()
    journal: JournalSettings | None = None
    metrics: MetricsSettings = field(default_factory=MetricsSettings)

    @property
    def fixed(self) -> dict[str, object]:
        """The settings that only a restart can change, by option name."""
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
