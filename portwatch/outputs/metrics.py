"""The metrics: counters fed by events, and values read at each scrape.

The metrics about single ports are in `port_series.py`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from time import time_ns
from typing import TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from portwatch import __version__
from portwatch.addresses import EXPOSURES, exposure
from portwatch.event import Event, Listener
from portwatch.model import PROTOCOLS
from portwatch.outputs import port_series
from portwatch.watch.counts import Counts

BUCKETS = (50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 100e-3, 200e-3, 500e-3, 1.0)
"""Upper bounds of portwatch_event_latency_seconds, in seconds."""

# These series start with the value 0. If they were created later, rate() would miss their first increase.
_COMMON_BIND_FAILURES = [(proto, errno) for proto in PROTOCOLS for errno in ("EADDRINUSE", "EACCES")]
_REASONS = ("start", "interval", "asked", "loss")
_DIRECTIONS = ("open", "close")

_Key = TypeVar("_Key", bound="str | tuple[str, ...]")

_PROCESS = ProcessCollector(registry=None)
"""The standard metrics of this process: CPU, memory and open files."""


class Tally:
    """Counts events. Call it with each event, from one thread at a time."""

    def __init__(self) -> None:
        self.opens = Counter(dict.fromkeys(PROTOCOLS, 0))
        self.closes = Counter(dict.fromkeys(PROTOCOLS, 0))
        self.bind_failures = Counter(dict.fromkeys(_COMMON_BIND_FAILURES, 0))
        self.listen_failures = Counter({"EADDRINUSE": 0})
        self.latency_buckets = [0] * (len(BUCKETS) + 1)
        self.latency_sum = 0.0
        self.dropped_series = 0

    def __call__(self, event: Event) -> None:
        """Count an event. Events with the origin `snapshot` are skipped, because they report no change."""
        if event.origin == "snapshot" or event.proto is None:
            return
        if event.kind == "open":
            self.opens[event.proto] += 1
        elif event.kind == "close":
            self.closes[event.proto] += 1
        elif event.kind == "bind_failed":
            self.bind_failures[event.proto, event.errno or ""] += 1
        elif event.kind == "listen_failed":
            self.listen_failures[event.errno or ""] += 1
        if event.origin == "event":  # other events have no kernel timestamp
            self._observe_latency(max(0, time_ns() - event.time) / 1e9)

    def _observe_latency(self, seconds: float) -> None:
        self.latency_buckets[bisect_left(BUCKETS, seconds)] += 1
        self.latency_sum += seconds


@dataclass(frozen=True, slots=True)
class ScrapeData:
    """The values that are read at a scrape."""

    listeners: Iterable[Listener] | None
    """None before the first snapshot."""
    series_options: port_series.SeriesOptions
    engine: dict[str, str]
    """Labels of portwatch_engine_info. Empty before the first snapshot."""
    counts: Counts
    lost: Mapping[str, int]
    """Number of lost events, by the place where they were lost (the label `where`)."""
    subscribers: int


def exposition(data: ScrapeData, tally: Tally, accept: str) -> tuple[bytes, str]:
    """Return the metrics in the format that the Accept header asks for, and the content type of that format."""
    try:
        encoder, content_type = choose_encoder(accept)
    except TypeError:  # prometheus-client raises TypeError if the version is not a number
        encoder, content_type = choose_encoder("")
    ports = port_series.gather(data.listeners or (), data.series_options)
    tally.dropped_series += len(ports.left_out)
    registry = CollectorRegistry()
    registry.register(_DaemonMetrics(data, tally, ports))
    registry.register(_PROCESS)
    return port_series.port_exposition(ports.series).encode() + encoder(registry), content_type


class _DaemonMetrics(Collector):
    """All metrics except those about single ports."""

    def __init__(self, data: ScrapeData, tally: Tally, ports: port_series.PortSeries) -> None:
        self._data = data
        self._tally = tally
        self._ports = ports

    def collect(self) -> Iterator[Metric]:
        data, tally, counts = self._data, self._tally, self._data.counts
        if data.listeners is not None:
            yield from _port_totals(self._ports, data.series_options.expected)
        yield _counter("opens", "Ports opened.", ["proto"], tally.opens)
        yield _counter("closes", "Ports closed.", ["proto"], tally.closes)
        yield _counter("bind_failures", "Failed bind calls.", ["proto", "errno"], tally.bind_failures)
        yield _counter("listen_failures", "Failed listen calls.", ["errno"], tally.listen_failures)
        yield _counter("events_lost", "Events lost, by the place where they were lost.", ["where"], data.lost)
        yield _counter(
            "reconciliations",
            "Comparisons of the known open ports with the kernel's list of sockets.",
            ["reason"],
            dict.fromkeys(_REASONS, 0) | counts.reconciliations,
        )
        yield _counter(
            "reconcile_drift",
            "Opens and closes that were found by a reconciliation because no event had reported them.",
            ["direction"],
            dict.fromkeys(_DIRECTIONS, 0) | counts.drift,
        )
        yield CounterMetricFamily(
            "portwatch_programs_skipped",
            "BPF program runs that the kernel skipped. Each may hide an event until the next reconciliation.",
            counts.recursion_misses,
        )
        yield _latency(tuple(tally.latency_buckets), tally.latency_sum)
        yield GaugeMetricFamily(
            "portwatch_subscribers", "Clients connected to the event stream.", data.subscribers
        )
        yield CounterMetricFamily(
            "portwatch_series_dropped",
            "Per-port series left out because of --metrics-max-series, added up over all scrapes.",
            tally.dropped_series,
        )
        if data.engine:
            yield InfoMetricFamily("portwatch_engine", "The engine in use, and what is degraded.", data.engine)
        yield InfoMetricFamily("portwatch_build", "The version of portwatch.", {"version": __version__})


def _port_totals(ports: port_series.PortSeries, expected: Collection[tuple[str, int]]) -> Iterator[Metric]:
    listeners = Counter({(proto, reach): 0 for proto in PROTOCOLS for reach in EXPOSURES})
    for (proto, address), count in ports.sockets.items():
        listeners[proto, exposure(address)] += count
    yield _gauge("listeners", "Listening sockets.", ["proto", "exposure"], listeners)
    yield _gauge(
        "expected_port_up",
        "1 if the expected port (--expect) is open on any address, else 0.",
        ["proto", "port"],
        {(proto, str(port)): (proto, port) in ports.expected_up for proto, port in expected},
    )


def _latency(buckets: Sequence[int], total: float) -> Metric:
    bounds = (*map(str, BUCKETS), "+Inf")
    return HistogramMetricFamily(
        "portwatch_event_latency_seconds",
        "Time from the event in the kernel to its delivery to the outputs.",
        list(zip(bounds, accumulate(buckets), strict=True)),
        total,
    )


def _counter(name: str, help_text: str, labels: Sequence[str], values: Mapping[_Key, float]) -> Metric:
    return _filled(CounterMetricFamily(f"portwatch_{name}", help_text, labels=labels), values)


def _gauge(name: str, help_text: str, labels: Sequence[str], values: Mapping[_Key, float]) -> Metric:
    return _filled(GaugeMetricFamily(f"portwatch_{name}", help_text, labels=labels), values)


def _filled(family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[_Key, float]) -> Metric:
    for labels, value in dict(values).items():  # a copy, because another thread changes the tally
        family.add_metric((labels,) if isinstance(labels, str) else labels, value)
    return family
