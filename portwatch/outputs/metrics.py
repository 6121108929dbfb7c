"""Figures for Prometheus: what is counted of the events, and what there is at the time of a scrape."""

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
from portwatch.addresses import exposure
from portwatch.event import Event, Listener
from portwatch.filters.parsing import EXPOSURES, PROTOCOLS
from portwatch.outputs import port_series
from portwatch.watch.counts import Counts

BUCKETS = (50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 100e-3, 200e-3, 500e-3, 1.0)
"""Seconds from the kernel to us."""

# What is there from the start, at 0: a rate() sees no first time of a series that was not there before.
_COMMON_BIND_FAILURES = [(proto, errno) for proto in PROTOCOLS for errno in ("EADDRINUSE", "EACCES")]
_REASONS = ("start", "interval", "asked", "loss")
_DIRECTIONS = ("open", "close")

_Key = TypeVar("_Key", bound="str | tuple[str, ...]")

_PROCESS = ProcessCollector(registry=None)


class Tally:
    """Counts events: what it is called with, one at a time."""

    def __init__(self) -> None:
        self.opens = Counter(dict.fromkeys(PROTOCOLS, 0))
        self.closes = Counter(dict.fromkeys(PROTOCOLS, 0))
        self.bind_failures = Counter(dict.fromkeys(_COMMON_BIND_FAILURES, 0))
        self.listen_failures = Counter({"EADDRINUSE": 0})
        self.latency_buckets = [0] * (len(BUCKETS) + 1)
        self.latency_sum = 0.0
        self.dropped_series = 0

    def __call__(self, event: Event) -> None:
        """Counts it. What was open at the start is no change."""
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
        if event.origin == "event":
            self._took(max(0, time_ns() - event.time) / 1e9)

    def _took(self, seconds: float) -> None:
        self.latency_buckets[bisect_left(BUCKETS, seconds)] += 1
        self.latency_sum += seconds


@dataclass(frozen=True, slots=True)
class ScrapeData:
    """What there is at the time of a scrape."""

    listeners: Iterable[Listener] | None
    """None before they are known."""
    shown: port_series.SeriesOptions
    engine: dict[str, str]
    """Labels; empty before there is one."""
    counts: Counts
    lost: Mapping[str, int]
    """Events that did not arrive, by where."""
    subscribers: int


def exposition(view: ScrapeData, tally: Tally, accept: str) -> tuple[bytes, str]:
    """A scrape in the format that the header Accept asks for, and its content type."""
    try:
        encoder, content_type = choose_encoder(accept)
    except TypeError:  # it compares a version that is no number with one
        encoder, content_type = choose_encoder("")
    found = port_series.gather(view.listeners or (), view.shown)
    tally.dropped_series += len(found.left_out)
    registry = CollectorRegistry()
    registry.register(_Figures(view, tally, found))
    registry.register(_PROCESS)
    return port_series.exposition(found.series).encode() + encoder(registry), content_type


class _Figures(Collector):
    """Everything but the series of each port."""

    def __init__(self, view: ScrapeData, tally: Tally, found: port_series.PortSeries) -> None:
        self._view = view
        self._tally = tally
        self._found = found

    def collect(self) -> Iterator[Metric]:
        view, tally, counts = self._view, self._tally, self._view.counts
        if view.listeners is not None:
            yield from _of_ports(self._found, view.shown.expected)
        yield _counter("opens", "Ports that opened.", ["proto"], tally.opens)
        yield _counter("closes", "Ports that closed.", ["proto"], tally.closes)
        yield _counter("bind_failures", "Binds that failed.", ["proto", "errno"], tally.bind_failures)
        yield _counter("listen_failures", "Listens that failed.", ["errno"], tally.listen_failures)
        yield _counter("events_lost", "Events that were lost, by where.", ["where"], view.lost)
        yield _counter(
            "reconciliations",
            "Times that what is known was compared with what the kernel says.",
            ["reason"],
            dict.fromkeys(_REASONS, 0) | counts.reconciliations,
        )
        yield _counter(
            "reconcile_drift",
            "Opens and closes that were found by that, and that nothing had told of.",
            ["direction"],
            dict.fromkeys(_DIRECTIONS, 0) | counts.drift,
        )
        yield CounterMetricFamily(
            "portwatch_programs_skipped",
            "Times that the kernel left a program out, so that something may have been missed until a check.",
            counts.recursion_misses,
        )
        yield _latency(tuple(tally.latency_buckets), tally.latency_sum)
        yield GaugeMetricFamily("portwatch_subscribers", "Who follows the stream.", view.subscribers)
        yield CounterMetricFamily(
            "portwatch_series_dropped",
            "Series that a scrape left out, being over the limit; added up over the scrapes.",
            tally.dropped_series,
        )
        if view.engine:
            yield InfoMetricFamily(
                "portwatch_engine", "What sees the ports, and what it does not.", view.engine
            )
        yield InfoMetricFamily("portwatch_build", "What runs.", {"version": __version__})


def _of_ports(found: port_series.PortSeries, expected: Collection[tuple[str, int]]) -> Iterator[Metric]:
    listeners = Counter({(proto, reach): 0 for proto in PROTOCOLS for reach in EXPOSURES})
    for (proto, address), count in found.sockets.items():
        listeners[proto, exposure(address)] += count
    yield _gauge("listeners", "Sockets that listen.", ["proto", "exposure"], listeners)
    yield _gauge(
        "expected_port_up",
        "Whether somebody listens on a port of --expect, at whichever address.",
        ["proto", "port"],
        {(proto, str(port)): (proto, port) in found.expected_up for proto, port in expected},
    )


def _latency(buckets: Sequence[int], total: float) -> Metric:
    bounds = (*map(str, BUCKETS), "+Inf")
    return HistogramMetricFamily(
        "portwatch_event_latency_seconds",
        "From the kernel's time of an event to when it is handed on.",
        list(zip(bounds, accumulate(buckets), strict=True)),
        total,
    )


def _counter(name: str, text: str, labels: Sequence[str], values: Mapping[_Key, float]) -> Metric:
    return _filled(CounterMetricFamily(f"portwatch_{name}", text, labels=labels), values)


def _gauge(name: str, text: str, labels: Sequence[str], values: Mapping[_Key, float]) -> Metric:
    return _filled(GaugeMetricFamily(f"portwatch_{name}", text, labels=labels), values)


def _filled(family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[_Key, float]) -> Metric:
    for labels, value in dict(values).items():  # of a copy: they are counted meanwhile
        family.add_metric((labels,) if isinstance(labels, str) else labels, value)
    return family
