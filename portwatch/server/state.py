"""The daemon's state as the routes read it: open ports, readiness and the data for a scrape."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from portwatch.event import Listener
from portwatch.outputs.journal import Journal
from portwatch.outputs.log import EventLog
from portwatch.outputs.metrics import ScrapeData
from portwatch.outputs.port_series import SeriesOptions, ephemeral_ports
from portwatch.server.monitor import Monitor
from portwatch.server.stream import Stream
from portwatch.watch.counts import Counts
from portwatch.watch.hub import Hub


class DaemonState:
    """A read-only view of the daemon. `listeners` and `scrape` may block: call them in a thread."""

    def __init__(self, monitor: Monitor, stream: Stream, journal: Journal | None, event_log: EventLog) -> None:
        self._monitor = monitor
        self._stream = stream
        self._journal = journal
        self._event_log = event_log

    @property
    def last_seq(self) -> int:
        """The seq of the newest event."""
        return self._stream.last_seq

    @property
    def kept_after(self) -> int:
        """The lowest seq after which every event is still in memory."""
        return self._stream.kept_after

    def listeners(self, *, refresh: bool = False) -> Iterator[Listener]:
        """Return the open ports. With `refresh`, read their holders from the kernel first."""
        return self._monitor.listeners(refresh=refresh)

    def readiness(self) -> dict[str, Any]:
        """Return the body of `/readyz`."""
        hub = self._monitor.hub
        if hub is None or not self._monitor.is_ready:
            return {"ready": False, "engine": None, "hooks": None, "limits": [], "degraded": []}
        info = hub.choice.engine.info
        return {
            "ready": hub.failure is None,
            "engine": info.engine,
            "hooks": info.hooks,
            "limits": [{"name": limit.name, "text": limit.text} for limit in info.limits],
            "degraded": self._degraded(hub),
        }

    def scrape(self) -> ScrapeData:
        """Return the current values for `/metrics`."""
        hub, settings, is_ready = self._monitor.hub, self._monitor.settings, self._monitor.is_ready
        counts = hub.counts if hub else Counts()
        return ScrapeData(
            listeners=self.listeners() if is_ready else None,
            series_options=SeriesOptions(
                pid=settings.metrics.pid,
                ephemeral=range(0) if settings.metrics.ephemeral else ephemeral_ports(),
                expected=settings.expected,
                max_series=settings.metrics.max_series,
            ),
            engine=self._engine_labels(hub) if hub and is_ready else {},
            counts=counts,
            lost={
                "kernel": counts.lost,
                "subscriber": counts.subscriber_drops,
                "journal": self._journal.lost if self._journal else 0,
                "stream": self._stream.missed,
                "log": self._event_log.dropped,
            },
            subscribers=self._stream.subscribers,
        )

    def _degraded(self, hub: Hub) -> list[str]:
        """Return one sentence for each thing that does not work as configured."""
        reasons = [f"the engine {name} cannot run here: {error}" for name, error in hub.choice.refusals.items()]
        if hub.failure:
            reasons.append(f"no more events can be read: {hub.failure}")
        if self._journal and self._journal.trouble:
            reasons.append(f"the journal cannot be written: {self._journal.trouble}")
        return reasons

    def _engine_labels(self, hub: Hub) -> dict[str, str]:
        info = hub.choice.engine.info
        degraded = [f"no_{name}" for name in hub.choice.refusals]
        if self._journal and self._journal.trouble:
            degraded.append("journal")
        degraded += [limit.name for limit in info.limits]
        return {"engine": info.engine, "kernel": os.uname().release, "degraded": ",".join(degraded)}
