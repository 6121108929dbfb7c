"""The metrics about the daemon, and the metrics that count all ports."""

from dataclasses import replace

import pytest
from fake_engine import opening
from scrapes import Scrape, listener, scrape_data
from support import wait_until

from portwatch.engines.protocol import Options
from portwatch.event import Event
from portwatch.outputs.metrics import BUCKETS, Tally, exposition
from portwatch.watch.counts import Counts
from portwatch.watch.hub import Hub


def event(kind="open", origin="event", proto="tcp", time=0, **fields):
    return Event(1, time, kind, origin, proto=proto, **fields)


def test_listeners_are_counted_for_every_protocol_and_exposure_even_if_there_are_none():
    scrape = Scrape(
        scrape_data(
            listener(1),
            listener(2),
            listener(3, address="0.0.0.0"),
            listener(4, proto="udp", family="ipv6", address="::"),
            listener(5, address="10.0.0.1"),
            listener(6, address="127.0.0.53"),
        )
    )
    counts = {
        (sample.labels["proto"], sample.labels["exposure"]): sample.value
        for sample in scrape.samples
        if sample.name == "portwatch_listeners"
    }
    assert {key: count for key, count in counts.items() if count} == {
        ("tcp", "loopback"): 3,
        ("tcp", "all"): 1,
        ("udp", "all"): 1,
        ("tcp", "private"): 1,
    }
    assert len(counts) == 8


def test_an_expected_port_is_up_if_it_is_open_on_any_address():
    scrape = Scrape(
        scrape_data(
            listener(1, 80, address="::", family="ipv6"),
            listener(2, 53),
            listener(3, 123, proto="udp"),
            expected=[("tcp", 80), ("udp", 53), ("udp", 123)],
        )
    )
    assert scrape.values("portwatch_expected_port_up", "port") == {"80": 1, "53": 0, "123": 1}


def test_before_the_first_snapshot_a_scrape_has_no_metrics_about_ports():
    scrape = Scrape(replace(scrape_data(expected=[("tcp", 80)]), listeners=None))
    names = {sample.name for sample in scrape.samples}
    assert "portwatch_build_info" in names
    assert names.isdisjoint({"portwatch_expected_port_up", "portwatch_listeners", "portwatch_listening_port"})


@pytest.mark.parametrize(("origin", "count"), [("event", 1), ("reconcile", 1), ("snapshot", 0)])
def test_opens_and_closes_are_counted_unless_they_come_from_a_snapshot(origin, count):
    tally = Tally()
    tally(event("open", origin))
    tally(event("close", origin, proto="udp"))
    scrape = Scrape(scrape_data(), tally)
    assert scrape.values("portwatch_opens_total", "proto") == {"tcp": count, "udp": 0}
    assert scrape.values("portwatch_closes_total", "proto") == {"tcp": 0, "udp": count}


def test_failed_binds_and_listens_are_counted_by_errno():
    tally = Tally()
    tally(event("bind_failed", errno="EADDRINUSE"))
    tally(event("bind_failed", errno="EADDRNOTAVAIL", proto="udp"))
    tally(event("listen_failed", errno="EADDRINUSE"))
    scrape = Scrape(scrape_data(), tally)
    assert scrape.value("portwatch_bind_failures_total", proto="tcp", errno="EADDRINUSE") == 1
    assert scrape.value("portwatch_bind_failures_total", proto="udp", errno="EADDRNOTAVAIL") == 1
    assert scrape.value("portwatch_listen_failures_total", errno="EADDRINUSE") == 1
    assert scrape.value("portwatch_opens_total", proto="tcp") == 0


def test_latency_is_measured_only_for_events_with_a_kernel_timestamp(monkeypatch):
    now = 1_000_000_000_000
    monkeypatch.setattr("portwatch.outputs.metrics.time_ns", lambda: now)
    tally = Tally()
    clock_set_back = -5_000_000_000
    for latency in (clock_set_back, 50_000, 50_001, 300_000, 7_000_000_000):
        tally(event(time=now - latency))
    tally(event(origin="snapshot", time=0))
    tally(event(origin="reconcile", time=0))
    tally(Event(1, 0, "gap", "reconcile", lost=3))
    scrape = Scrape(scrape_data(), tally)
    name = "portwatch_event_latency_seconds"
    buckets = scrape.values(f"{name}_bucket", "le")
    assert (buckets["5e-05"], buckets["0.0001"], buckets["0.0005"], buckets["1.0"], buckets["+Inf"]) == (
        2,
        3,
        4,
        4,
        5,
    )
    assert len(buckets) == len(BUCKETS) + 1
    assert scrape.value(f"{name}_count") == 5
    assert scrape.value(f"{name}_sum") == pytest.approx(7.00040001, abs=1e-6)


def test_counters_of_reconciliations_and_losses_exist_before_anything_is_counted():
    counts = Counts()
    counts.reconciliations["loss"] += 2
    counts.drift["open"] += 7
    scrape = Scrape(scrape_data(counts=counts, lost={"kernel": 3, "subscriber": 0}))
    assert scrape.values("portwatch_reconciliations_total", "reason") == {
        "start": 0,
        "interval": 0,
        "asked": 0,
        "loss": 2,
    }
    assert scrape.values("portwatch_reconcile_drift_total", "direction") == {"open": 7, "close": 0}
    assert scrape.values("portwatch_events_lost_total", "where") == {"kernel": 3, "subscriber": 0}


def test_the_engine_and_its_state_are_labels_of_engine_info():
    labels = {"engine": "poll", "kernel": "6.1", "degraded": "no_core,failures"}
    assert Scrape(scrape_data(engine=labels)).labels("portwatch_engine_info") == [labels]


def test_events_dropped_for_a_slow_subscriber_are_counted(engine):
    hub = Hub.open("fake", Options())
    request = hub.subscribe(lambda _: True, capacity=1)
    hub.start()
    subscription = request.wait()
    engine.push(*(opening(number, 8000 + number) for number in (1, 2, 3)))
    wait_until(lambda: len(list(hub.listeners(subscription, refresh=False))) == 3, "the opens")
    assert [subscription.get().kind for _ in range(2)] == ["open", "gap"]
    hub.stop()
    assert (hub.counts.subscriber_drops, hub.counts.lost) == (2, 0)


@pytest.mark.parametrize("accept", ["", "*/*", "text/html", "text/plain;version=x"])
def test_for_an_unsupported_accept_header_the_format_is_text(accept):
    assert exposition(scrape_data(), Tally(), accept)[1].startswith("text/plain; version=0.0.4")


def test_a_scrape_succeeds_even_if_the_version_in_the_accept_header_is_malformed():
    assert (
        b"portwatch_build_info"
        in exposition(scrape_data(), Tally(), "application/openmetrics-text;version=x")[0]
    )
