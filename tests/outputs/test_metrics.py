"""What a scrape says: of which ports, counted how, written how."""

import contextlib
import gzip
import os
import shutil
import signal
import socket
import sqlite3
from dataclasses import replace

import pytest
from daemon import serving
from fake_engine import PROCESS, opening
from fake_engine import socket as a_socket
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from support import wait_until

from portwatch.engines.protocol import Options
from portwatch.event import Event, Listener
from portwatch.outputs.metrics import BUCKETS, ScrapeData, Tally, exposition
from portwatch.outputs.port_series import EPHEMERAL, SeriesOptions, ephemeral_ports, gather
from portwatch.watch.counts import Counts
from portwatch.watch.hub import Hub

OPENMETRICS = "application/openmetrics-text;version=1.0.0"


def listener(number=1, port=8080, opener=PROCESS, opened=None, **fields):
    where = replace(a_socket(number, port), **fields)
    return Listener("event", opened, where, 1, opener, (opener,) if opener else ())


def shown(*, pid=False, folded=range(0), expected=(), most=100):
    return SeriesOptions(pid, folded, expected, most)


def view(*listeners, lost=None, counts=None, engine=None, **fields):
    return ScrapeData(
        listeners=listeners,
        shown=shown(**fields),
        engine=engine or {},
        counts=counts or Counts(),
        lost=lost or {},
        subscribers=0,
    )


def event(kind="open", origin="event", proto="tcp", time=0, **fields):
    return Event(1, time, kind, origin, proto=proto, **fields)


class Scrape:
    """What Prometheus would read."""

    def __init__(self, view, tally=None):
        self.text, self.content_type = exposition(view, tally or Tally(), "")
        self.samples = [one for family in parse_text(self.text.decode()) for one in family.samples]

    def labels(self, name):
        return [one.labels for one in self.samples if one.name == name]

    def value(self, name, **labels):
        (value,) = [one.value for one in self.samples if one.name == name and one.labels == labels]
        return value

    def values(self, name, label):
        return {one.labels[label]: one.value for one in self.samples if one.name == name}


def test_a_port_is_a_series_by_where_it_is_and_who_opened_it():
    someone_else = replace(PROCESS, pid=11, process="worker")
    opener = replace(PROCESS, container="4f1e")
    found = Scrape(view(replace(listener(opener=opener), holders=(someone_else,))))
    assert found.labels("portwatch_listening_port") == [
        {"proto": "tcp", "address": "127.0.0.1", "port": "8080", "process": "nginx", "container": "4f1e"}
    ]


def test_a_pid_is_a_label_only_where_it_is_asked_for():
    (labels,) = Scrape(view(listener(), pid=True)).labels("portwatch_listening_port")
    assert labels["pid"] == "10"


def test_who_opened_it_may_not_be_known():
    (labels,) = Scrape(view(listener(opener=None), pid=True)).labels("portwatch_listening_port")
    assert (labels["process"], labels["container"], labels["pid"]) == ("", "", "")


def test_ports_that_the_kernel_hands_out_are_one_series():
    found = Scrape(
        view(listener(1, 40_000), listener(2, 40_001), listener(3, 80), folded=range(32_768, 61_000))
    )
    assert [one["port"] for one in found.labels("portwatch_listening_port")] == [EPHEMERAL, "80"]
    assert found.value("portwatch_series_dropped_total") == 0


def test_an_expected_port_keeps_its_number():
    found = Scrape(
        view(
            listener(1, 40_000),
            listener(2, 40_000, proto="udp"),
            folded=range(32_768, 61_000),
            expected=[("tcp", 40_000)],
        )
    )
    assert [(one["proto"], one["port"]) for one in found.labels("portwatch_listening_port")] == [
        ("tcp", "40000"),
        ("udp", EPHEMERAL),
    ]


def test_the_kernels_range_includes_its_ends():
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        first, last = map(int, file.read().split())
    found = ephemeral_ports()
    assert (first in found, last in found, last + 1 in found) == (True, True, False)


@pytest.mark.parametrize(
    ("opened", "earliest"), [((5, 3, 4), 3), ((None, 3), 3), ((3, None), 3), ((None, None), None), ((0, 3), 0)]
)
def test_several_sockets_on_a_port_are_one_series_since_the_first_that_is_known(opened, earliest):
    several = [listener(number, opened=time, netns=number) for number, time in enumerate(opened)]
    assert list(gather(several, shown()).series.values()) == [earliest]


def test_when_it_opened_is_in_seconds_and_missing_where_it_is_not_known():
    found = Scrape(view(listener(1, 80, opened=1_795_499_214_123_456_789), listener(2, 81)))
    name = "portwatch_listening_port_opened_timestamp_seconds"
    assert found.values(name, "port") == {"80": pytest.approx(1_795_499_214.123456789, abs=1e-6)}
    assert set(found.values("portwatch_listening_port", "port")) == {"80", "81"}


def test_series_over_the_limit_are_counted_and_the_first_stay():
    tally = Tally()
    crowd = view(*(listener(port, port) for port in (5, 4, 3, 2, 1)), most=2)
    for scrapes in (1, 2):
        found = Scrape(crowd, tally)
        assert set(found.values("portwatch_listening_port", "port")) == {"5", "4"}
        assert found.value("portwatch_series_dropped_total") == 3 * scrapes


def test_sockets_of_a_series_that_is_left_out_are_one_too_many():
    found = gather([listener(1, 80), listener(2, 81), listener(3, 81)], shown(most=1))
    assert len(found.left_out) == 1


@pytest.mark.parametrize("name", ['a"b\n\\', '\\n"', '",x="y', "\\", "é\u2028\t{}"])
@pytest.mark.parametrize(("accept", "parse"), [("", parse_text), (OPENMETRICS, parse_openmetrics)])
def test_a_process_may_be_called_anything(name, accept, parse):
    text, _ = exposition(view(listener(opener=replace(PROCESS, process=name))), Tally(), accept)
    families = {family.name: family for family in parse(text.decode())}
    (sample,) = families["portwatch_listening_port"].samples
    assert sample.labels["process"] == name


def test_listeners_are_counted_by_how_far_they_can_be_reached_zeros_too():
    found = Scrape(
        view(
            listener(1),
            listener(2),
            listener(3, address="0.0.0.0"),
            listener(4, proto="udp", family="ipv6", address="::"),
            listener(5, address="10.0.0.1"),
            listener(6, address="127.0.0.53"),
        )
    )
    counts = {
        (one.labels["proto"], one.labels["exposure"]): one.value
        for one in found.samples
        if one.name == "portwatch_listeners"
    }
    assert {key: count for key, count in counts.items() if count} == {
        ("tcp", "loopback"): 3,
        ("tcp", "all"): 1,
        ("udp", "all"): 1,
        ("tcp", "private"): 1,
    }
    assert len(counts) == 8


def test_an_expected_port_is_up_or_not_whatever_its_address():
    found = Scrape(
        view(
            listener(1, 80, address="::", family="ipv6"),
            listener(2, 53),
            listener(3, 123, proto="udp"),
            expected=[("tcp", 80), ("udp", 53), ("udp", 123)],
        )
    )
    assert found.values("portwatch_expected_port_up", "port") == {"80": 1, "53": 0, "123": 1}


def test_before_it_is_known_what_is_open_nothing_is_said_to_be_down():
    found = Scrape(replace(view(expected=[("tcp", 80)]), listeners=None))
    names = {one.name for one in found.samples}
    assert "portwatch_build_info" in names
    assert names.isdisjoint({"portwatch_expected_port_up", "portwatch_listeners", "portwatch_listening_port"})


@pytest.mark.parametrize(("origin", "count"), [("event", 1), ("reconcile", 1), ("snapshot", 0)])
def test_changes_are_counted_and_what_was_open_at_the_start_is_none(origin, count):
    tally = Tally()
    tally(event("open", origin))
    tally(event("close", origin, proto="udp"))
    found = Scrape(view(), tally)
    assert found.values("portwatch_opens_total", "proto") == {"tcp": count, "udp": 0}
    assert found.values("portwatch_closes_total", "proto") == {"tcp": 0, "udp": count}


def test_failures_are_counted_by_what_the_kernel_said():
    tally = Tally()
    tally(event("bind_failed", errno="EADDRINUSE"))
    tally(event("bind_failed", errno="EADDRNOTAVAIL", proto="udp"))
    tally(event("listen_failed", errno="EADDRINUSE"))
    found = Scrape(view(), tally)
    assert found.value("portwatch_bind_failures_total", proto="tcp", errno="EADDRINUSE") == 1
    assert found.value("portwatch_bind_failures_total", proto="udp", errno="EADDRNOTAVAIL") == 1
    assert found.value("portwatch_listen_failures_total", errno="EADDRINUSE") == 1
    assert found.value("portwatch_opens_total", proto="tcp") == 0


def test_latency_is_of_what_the_kernel_told_as_it_happened(monkeypatch):
    now = 1_000_000_000_000
    monkeypatch.setattr("portwatch.outputs.metrics.time_ns", lambda: now)
    tally = Tally()
    for late in (
        -5_000_000_000,
        50_000,
        50_001,
        300_000,
        7_000_000_000,
    ):  # a clock that was set back is no time travel
        tally(event(time=now - late))
    tally(event(origin="snapshot", time=0))
    tally(event(origin="reconcile", time=0))
    tally(Event(1, 0, "gap", "reconcile", lost=3))
    found = Scrape(view(), tally)
    name = "portwatch_event_latency_seconds"
    buckets = found.values(f"{name}_bucket", "le")
    assert (buckets["5e-05"], buckets["0.0001"], buckets["0.0005"], buckets["1.0"], buckets["+Inf"]) == (
        2,
        3,
        4,
        4,
        5,
    )
    assert len(buckets) == len(BUCKETS) + 1
    assert found.value(f"{name}_count") == 5
    assert found.value(f"{name}_sum") == pytest.approx(7.00040001, abs=1e-6)


def test_repairs_and_losses_are_counted_from_zero():
    counts = Counts()
    counts.reconciliations["loss"] += 2
    counts.drift["open"] += 7
    found = Scrape(view(counts=counts, lost={"kernel": 3, "subscriber": 0}))
    assert found.values("portwatch_reconciliations_total", "reason") == {
        "start": 0,
        "interval": 0,
        "asked": 0,
        "loss": 2,
    }
    assert found.values("portwatch_reconcile_drift_total", "direction") == {"open": 7, "close": 0}
    assert found.values("portwatch_events_lost_total", "where") == {"kernel": 3, "subscriber": 0}


def test_the_engine_is_told_with_what_it_lacks():
    labels = {"engine": "poll", "kernel": "6.1", "degraded": "no_core,failures"}
    assert Scrape(view(engine=labels)).labels("portwatch_engine_info") == [labels]


def test_events_that_a_subscriber_was_too_slow_for_are_counted(engine):
    hub = Hub.open("fake", Options())
    subscribing = hub.subscribe(lambda _: True, capacity=1)
    hub.start()
    subscription = subscribing.wait()
    engine.push(*(opening(number, 8000 + number) for number in (1, 2, 3)))
    wait_until(lambda: len(list(hub.listeners(subscription, look=False))) == 3, "the opens")
    assert [subscription.get().kind for _ in range(2)] == ["open", "gap"]
    hub.stop()
    assert (hub.counts.subscriber_drops, hub.counts.lost) == (2, 0)


@pytest.mark.parametrize("accept", ["", "*/*", "text/html", "text/plain;version=x"])
def test_whoever_asks_for_no_format_that_there_is_gets_text(accept):
    assert exposition(view(), Tally(), accept)[1].startswith("text/plain; version=0.0.4")


def test_a_version_that_is_no_number_is_no_reason_to_answer_nothing():
    assert b"portwatch_build_info" in exposition(view(), Tally(), "application/openmetrics-text;version=x")[0]


@pytest.fixture
def port():
    """A port that we listen on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def scrape(daemon, **headers):
    status, found, body = daemon.ask("/metrics", **headers)
    assert status == 200
    return found, body


def ports_up(daemon):
    return {
        one.labels["port"]: one.labels
        for family in parse_text(scrape(daemon)[1].decode())
        for one in family.samples
        if one.name == "portwatch_listening_port"
    }


def test_the_daemon_shows_a_port_while_it_is_open(port):
    with serving("--metrics-ephemeral", "--metrics-pid") as daemon:
        wait_until(lambda: str(port) in ports_up(daemon), "the port")
        with socket.create_server(("127.0.0.1", 0)) as another:
            number = str(another.getsockname()[1])
            wait_until(lambda: number in ports_up(daemon), "another")
        wait_until(lambda: number not in ports_up(daemon), "that it has gone")
        assert b'portwatch_opens_total{proto="tcp"} 0.0' not in scrape(daemon)[1]
        assert str(port) in ports_up(daemon)


def test_openmetrics_and_compression_are_for_those_who_ask():
    with serving("--metrics-ephemeral") as daemon:
        headers, body = scrape(daemon)
        assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert "Content-Encoding" not in headers
        headers, body = scrape(daemon, Accept=OPENMETRICS, Accept_Encoding="gzip")
        assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
        assert headers["Content-Encoding"] == "gzip"
        families = {family.name for family in parse_openmetrics(gzip.decompress(body).decode())}
        assert {"portwatch_listening_port", "portwatch_opens", "process_cpu_seconds"} <= families


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="takes rights away by setpriv")
def test_the_daemon_says_which_better_engine_could_not_run_and_what_this_one_lacks():
    no_rights = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()
    with serving(engine=("--engine", "auto", "--netns", "self"), prefix=no_rights) as daemon:
        limits = [one["name"] for one in daemon.ask("/readyz")[2]["limits"]]
        families = parse_text(scrape(daemon)[1].decode())
    (found,) = [
        one.labels for family in families for one in family.samples if family.name == "portwatch_engine_info"
    ]
    assert (found["engine"], found["kernel"]) == ("poll", os.uname().release)
    assert found["degraded"].split(",") == ["no_core", "no_bcc", *limits]


def test_a_journal_that_cannot_be_written_is_a_degradation(tmp_path):
    journal = tmp_path / "journal"
    with serving("--journal", str(journal)) as daemon, contextlib.closing(sqlite3.connect(journal)) as db:
        db.execute("BEGIN EXCLUSIVE")
        with socket.create_server(("127.0.0.1", 0)):  # something to be written
            wait_until(lambda: b'degraded="journal,' in scrape(daemon)[1], "trouble")
        assert b'portwatch_events_lost_total{where="journal"} 0.0' in scrape(daemon)[1]


def test_a_reload_changes_what_is_expected_shown_and_seen(tmp_path, port):
    config = tmp_path / "portwatch.toml"
    config.write_text("metrics-ephemeral = true\n")
    with serving("--config", str(config)) as daemon:
        wait_until(lambda: str(port) in ports_up(daemon), "the port")
        assert b"portwatch_expected_port_up{" not in scrape(daemon)[1]
        config.write_text(f'expect = ["tcp/{port}", "tcp/1"]\nmetrics-pid = true\nproto = ["tcp"]\n')
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(
            lambda: b'portwatch_expected_port_up{port="1",proto="tcp"} 0.0' in scrape(daemon)[1], "the reload"
        )
        assert f'portwatch_expected_port_up{{port="{port}",proto="tcp"}} 1.0'.encode() in scrape(daemon)[1]
        assert ports_up(daemon)[str(port)]["pid"]
        config.write_text("metrics-ephemeral = true\nproto = ['udp']\n")
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: ports_up(daemon) == {}, "the other scope")
