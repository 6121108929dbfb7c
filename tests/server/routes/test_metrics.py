"""GET /metrics, with a real daemon."""

import contextlib
import gzip
import os
import shutil
import signal
import socket
import sqlite3
import threading
from types import SimpleNamespace

import pytest
from daemon import serving
from http_server import HttpServerThread, read_response
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from scrapes import OPENMETRICS
from support import PATIENCE, wait_until

from portwatch import PortwatchError
from portwatch.outputs.metrics import Tally
from portwatch.server.routes import metrics


def scrape(daemon, **headers):
    status, response_headers, body = daemon.request("/metrics", **headers)
    assert status == 200
    return response_headers, body


def open_ports(daemon):
    """Return the labels of each open port."""
    return {
        sample.labels["port"]: sample.labels
        for family in parse_text(scrape(daemon)[1].decode())
        for sample in family.samples
        if sample.name == "portwatch_listening_port"
    }


def test_a_port_has_a_series_only_while_it_is_open(port):
    with serving("--metrics-ephemeral", "--metrics-pid") as daemon:
        wait_until(lambda: str(port) in open_ports(daemon), "the port to have a series")
        with socket.create_server(("127.0.0.1", 0)) as other:
            number = str(other.getsockname()[1])
            wait_until(lambda: number in open_ports(daemon), "the other port to have a series")
        wait_until(lambda: number not in open_ports(daemon), "its series to disappear")
        assert b'portwatch_opens_total{proto="tcp"} 0.0' not in scrape(daemon)[1]
        assert str(port) in open_ports(daemon)


def test_a_scrape_uses_openmetrics_and_gzip_if_the_client_accepts_them():
    with serving("--metrics-ephemeral") as daemon:
        headers, body = scrape(daemon)
        assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert "Content-Encoding" not in headers
        headers, body = scrape(daemon, Accept=OPENMETRICS, Accept_Encoding="gzip")
        assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
        assert headers["Content-Encoding"] == "gzip"
        families = {family.name for family in parse_openmetrics(gzip.decompress(body).decode())}
        assert {"portwatch_listening_port", "portwatch_opens", "process_cpu_seconds"} <= families


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="drops capabilities with setpriv")
def test_the_label_degraded_lists_unavailable_engines_and_the_engines_limits():
    unprivileged = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()
    with serving(engine=("--engine", "auto", "--netns", "self"), prefix=unprivileged) as daemon:
        limits = [limit["name"] for limit in daemon.request("/readyz")[2]["limits"]]
        families = parse_text(scrape(daemon)[1].decode())
    (labels,) = [
        sample.labels
        for family in families
        for sample in family.samples
        if family.name == "portwatch_engine_info"
    ]
    assert (labels["engine"], labels["kernel"]) == ("poll", os.uname().release)
    assert labels["degraded"].split(",") == ["no_core", "no_bcc", *limits]


def test_the_label_degraded_lists_the_journal_while_it_cannot_be_written(tmp_path):
    journal = tmp_path / "journal"
    with serving("--journal", str(journal)) as daemon, contextlib.closing(sqlite3.connect(journal)) as db:
        db.execute("BEGIN EXCLUSIVE")
        with socket.create_server(("127.0.0.1", 0)):  # causes an event, which must be written
            wait_until(lambda: b'degraded="journal,' in scrape(daemon)[1], "the label degraded")
        assert b'portwatch_events_lost_total{where="journal"} 0.0' in scrape(daemon)[1]


def test_a_reload_changes_the_expected_ports_the_labels_and_the_scope(tmp_path, port):
    config = tmp_path / "portwatch.toml"
    config.write_text("metrics-ephemeral = true\n")
    with serving("--config", str(config)) as daemon:
        wait_until(lambda: str(port) in open_ports(daemon), "the port to have a series")
        assert b"portwatch_expected_port_up{" not in scrape(daemon)[1]
        config.write_text(f'expect = ["tcp/{port}", "tcp/1"]\nmetrics-pid = true\nproto = ["tcp"]\n')
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(
            lambda: b'portwatch_expected_port_up{port="1",proto="tcp"} 0.0' in scrape(daemon)[1], "the reload"
        )
        assert f'portwatch_expected_port_up{{port="{port}",proto="tcp"}} 1.0'.encode() in scrape(daemon)[1]
        assert open_ports(daemon)[str(port)]["pid"]
        config.write_text("metrics-ephemeral = true\nproto = ['udp']\n")
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: open_ports(daemon) == {}, "the new scope")


def test_after_clients_disconnect_during_a_scrape_the_next_scrape_succeeds(daemon):
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", daemon.port)) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert daemon.request("/metrics")[0] == 200


def test_only_one_scrape_runs_at_a_time_even_if_clients_disconnect():
    running, max_running, release = [], [], threading.Event()

    def scrape():
        running.append(1)
        max_running.append(len(running))
        release.wait(PATIENCE)
        running.pop()
        raise PortwatchError("done")

    server = HttpServerThread(lambda _: metrics.routes(SimpleNamespace(scrape=scrape), Tally()))
    for _ in range(5):
        server.send_request("/metrics").close()
    last = server.send_request("/metrics")
    wait_until(lambda: running, "the first scrape")
    release.set()
    assert read_response(last)[0] == 503
    assert max(max_running) == 1
    server.stop()
