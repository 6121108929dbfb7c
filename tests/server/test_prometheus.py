"""The metrics as Prometheus, promtool and Alertmanager take them: the real ones, beside a daemon."""

import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import urllib.parse
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import pytest
from daemon import POLL, free_port, serving
from support import ENGINES, ROOT
from support import wait_until as wait_until_within

# Three programs start, on a machine that may have other things to do.
wait_until = partial(wait_until_within, patience=90)

DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "portwatch.rules.yml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "portwatch.json").read_text())
ALERTMANAGER = next(filter(shutil.which, ("prometheus-alertmanager", "alertmanager")), None)
PROGRAMS_ARE_HERE = bool(ALERTMANAGER and shutil.which("prometheus") and shutil.which("promtool"))

pytestmark = pytest.mark.skipif(
    not PROGRAMS_ARE_HERE and os.environ.get("CI") != "true",
    reason="needs Prometheus and its Alertmanager: scripts/provision.sh serve",
)


def can_use_core():
    return os.geteuid() == 0 and any(one.startswith("core") for one in ENGINES)


def promtool(*arguments, given=None):
    return subprocess.run(
        ["promtool", *map(str, arguments)], input=given, capture_output=True, text=True, timeout=60, check=False
    )


@contextmanager
def running(log, *command):
    """A program of theirs, ended with the block."""
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            yield
        finally:
            process.kill()


def ask(url, **parameters):
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(parameters)}", timeout=30) as response:
        return json.load(response)


def answers(url):
    with suppress(OSError):
        urllib.request.urlopen(url, timeout=5).close()
        return True
    return False


class Receiver:
    """What Alertmanager notifies: the alerts, in the order in which they came."""

    def __init__(self, stack):
        self.alerts = []
        alerts = self.alerts

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                alerts.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["alerts"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = server.server_port
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        stack.callback(lambda: (server.shutdown(), thread.join(), server.server_close()))

    def told_of(self, name, **labels):
        """Whether it fires or has resolved, each time that it was told."""
        wanted = {"alertname": name, **labels}
        return [one["status"] for one in self.alerts if wanted.items() <= one["labels"].items()]


class Monitoring:
    """A daemon that expects a port, a Prometheus that scrapes it, and an Alertmanager."""

    def __init__(self, stack, folder, engine):
        self.expected = free_port()
        self.receiver = Receiver(stack)
        self.daemon = stack.enter_context(
            serving("--metrics-ephemeral", "--expect", f"tcp/{self.expected}", engine=engine)
        )
        alertmanager, prometheus = free_port(), free_port()
        self.url = f"http://127.0.0.1:{prometheus}"
        stack.enter_context(
            running(
                folder / "alertmanager.log",
                ALERTMANAGER,
                f"--config.file={self._alertmanager(folder)}",
                f"--storage.path={folder / 'alertmanager'}",
                f"--web.listen-address=127.0.0.1:{alertmanager}",
                "--cluster.listen-address=",
            )
        )
        wait_until(lambda: answers(f"http://127.0.0.1:{alertmanager}/-/ready"), "Alertmanager")
        stack.enter_context(
            running(
                folder / "prometheus.log",
                "prometheus",
                f"--config.file={self._prometheus(folder, alertmanager)}",
                f"--storage.tsdb.path={folder / 'prometheus'}",
                f"--web.listen-address=127.0.0.1:{prometheus}",
            )
        )
        wait_until(lambda: answers(f"{self.url}/-/ready"), "Prometheus")

    def _alertmanager(self, folder):
        route = {"receiver": "test", "group_wait": "10ms", "group_interval": "100ms", "group_by": ["..."]}
        hook = {"url": f"http://127.0.0.1:{self.receiver.port}/", "send_resolved": True}
        path = folder / "alertmanager.yml"
        # JSON is YAML, too.
        path.write_text(
            json.dumps({"route": route, "receivers": [{"name": "test", "webhook_configs": [hook]}]})
        )
        return path

    def _prometheus(self, folder, alertmanager):
        rules = folder / "rules.yml"
        rules.write_text(RULES.read_text().replace("for: 1m", "for: 0s"))
        path = folder / "prometheus.yml"
        path.write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "500ms", "evaluation_interval": "200ms"},
                    "rule_files": [str(rules)],
                    "scrape_configs": [{"job_name": "portwatch", **targets(self.daemon.port)}],
                    "alerting": {"alertmanagers": [targets(alertmanager)]},
                }
            )
        )
        return path

    def query(self, expression):
        """The series that it makes now."""
        answer = ask(f"{self.url}/api/v1/query", query=expression)
        assert answer["status"] == "success"
        return answer["data"]["result"]

    def value(self, expression):
        return next((float(one["value"][1]) for one in self.query(expression)), None)


def targets(port):
    return {"static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}


@pytest.fixture(
    scope="module",
    params=[
        "poll",
        pytest.param(
            "core", marks=pytest.mark.skipif(not can_use_core(), reason="core is for root, where it is tested")
        ),
    ],
)
def monitoring(request, tmp_path_factory):
    assert PROGRAMS_ARE_HERE, "CI installs them: scripts/provision.sh serve"
    engine = POLL if request.param == "poll" else ("--engine", "core", "--netns", "self")
    with ExitStack() as stack:
        yield Monitoring(stack, tmp_path_factory.mktemp("monitoring"), engine)


def test_promtool_finds_nothing_to_say_of_our_metrics(monitoring):
    with socket.create_server(("127.0.0.1", 0)) as server:
        wait_until(
            lambda: b'port="%d"' % server.getsockname()[1] in monitoring.daemon.ask("/metrics")[2], "the port"
        )
        result = promtool("check", "metrics", given=monitoring.daemon.ask("/metrics")[2].decode())
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_port_is_there_after_a_scrape_and_gone_after_one(monitoring):
    wait_until(lambda: monitoring.value('up{job="portwatch"}') == 1, "a scrape")
    with socket.create_server(("127.0.0.1", 0)) as server:
        series = f'portwatch_listening_port{{proto="tcp", port="{server.getsockname()[1]}"}}'
        (found,) = wait_until(lambda: monitoring.query(series), "the port")
        assert found["metric"]["address"] == "127.0.0.1"
        assert found["metric"]["process"]
    wait_until(lambda: not monitoring.query(series), "that it has gone")


def test_an_expected_port_that_closes_is_told_of_and_that_it_is_back(monitoring):
    port = monitoring.expected
    labels = {"proto": "tcp", "port": str(port), "severity": "critical"}
    wait_until(lambda: monitoring.receiver.told_of("ExpectedPortDown", **labels)[:1] == ["firing"], "the alert")
    with socket.create_server(("127.0.0.1", port)):
        wait_until(lambda: monitoring.value(f'portwatch_expected_port_up{{port="{port}"}}') == 1, "the port")
        wait_until(
            lambda: monitoring.receiver.told_of("ExpectedPortDown", **labels)[-1] == "resolved",
            "that it has resolved",
        )


def queries():
    return [
        pytest.param(target["expr"], id=f"{panel['title']}, {target['refId']}")
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    ]


@pytest.mark.parametrize("expression", queries())
def test_a_query_of_the_dashboard_finds_something(monitoring, expression):
    for name, value in {"$job": ".*", "$instance": ".*", "$__rate_interval": "5s"}.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    wait_until(lambda: monitoring.query(expression), expression)


@pytest.mark.parametrize("rule", re.findall(r"alert: (\w+)", RULES.read_text()))
def test_prometheus_has_each_rule_and_no_trouble_with_it(monitoring, rule):
    groups = wait_until(
        lambda: [
            one
            for one in ask(f"{monitoring.url}/api/v1/rules")["data"]["groups"]
            if one["rules"][0]["health"] != "unknown"
        ],
        "the rules to be asked",
    )
    (found,) = [one for group in groups for one in group["rules"] if one["name"] == rule]
    assert (found["health"], found.get("lastError", "")) == ("ok", "")


def test_the_rules_fire_when_they_should():
    result = promtool("test", "rules", RULES.with_suffix(".test.yml"))
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_example_of_a_configuration_is_one():
    result = promtool("check", "config", RULES.with_name("prometheus.yml"))
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_two_panels_of_the_dashboard_are_in_one_place():
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
