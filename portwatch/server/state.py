"""What the daemon can say of itself and of what is open, to whoever asks."""

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
    """Its answers. `listeners` and `view` wait a moment: they are not for the loop's thread."""

    def __init__(self, monitor: Monitor, stream: Stream, journal: Journal | None, changes: EventLog) -> None:
        self._monitor = monitor
        self._stream = stream
        self._journal = journal
        self._changes = changes

    @property
    def last_seq(self) -> int:
        """The newest event's."""
        return self._stream.last_seq

    @property
    def kept_after(self) -> int:
        """The least `after` that the stream answers from memory."""
        return self._stream.kept_after

    def listeners(self, *, look: bool = False) -> Iterator[Listener]:
        """What is open now; with a `look`, with its holders as of now, not of a while ago."""
        return self._monitor.listeners(look=look)

    def readiness(self) -> dict[str, Any]:
        """How it does: whether it is `ready`, the engine, what that cannot see, and what is degraded."""
        hub = self._monitor.hub
        if hub is None or not self._monitor.is_ready:
            return {"ready": False, "engine": None, "hooks": None, "limits": [], "degraded": []}
        capabilities = hub.choice.engine.info
        return {
            "ready": hub.failure is None,
            "engine": capabilities.engine,
            "hooks": capabilities.hooks,
            "limits": [{"name": one.name, "text": one.text} for one in capabilities.limits],
            "degraded": self._degraded(hub),
        }

    def scrape(self) -> ScrapeData:
        """What the metrics show."""
        hub, settings, is_ready = self._monitor.hub, self._monitor.settings, self._monitor.is_ready
        counts = hub.counts if hub else Counts()
        return ScrapeData(
            listeners=self.listeners() if is_ready else None,
            shown=SeriesOptions(
                settings.metrics.pid,
                range(0) if settings.metrics.ephemeral else ephemeral_ports(),
                settings.expected,
                settings.metrics.max_series,
            ),
            engine=self._engine_labels(hub) if hub and is_ready else {},
            counts=counts,
            lost={
                "kernel": counts.lost,
                "subscriber": counts.subscriber_drops,
                "journal": self._journal.lost if self._journal else 0,
                "stream": self._stream.missed,
                "log": self._changes.left_out,
            },
            subscribers=self._stream.subscribers,
        )

    def _degraded(self, hub: Hub) -> list[str]:
        """What is not as it should be, each in words."""
        found = [f"{name} cannot run here: {error}" for name, error in hub.choice.refusals.items()]
        if hub.failure:
            found.append(f"no more events are read: {hub.failure}")
        if self._journal and self._journal.trouble:
            found.append(f"the journal is not written: {self._journal.trouble}")
        return found

    def _engine_labels(self, hub: Hub) -> dict[str, str]:
        capabilities = hub.choice.engine.info
        lacking = [f"no_{name}" for name in hub.choice.refusals]
        if self._journal and self._journal.trouble:
            lacking.append("journal")
        lacking += [one.name for one in capabilities.limits]
        return {"engine": capabilities.engine, "kernel": os.uname().release, "degraded": ",".join(lacking)}
