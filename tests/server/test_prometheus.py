"""The metrics and the files in deploy/, tested with a real Prometheus, an Alertmanager and a daemon."""

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

# The timeout is long, because three programs must start and the machine may be busy.
wait_until = partial(wait_until_within, patience=90)

DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "portwatch.rules.yml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "portwatch.json").read_text())
ALERTMANAGER = next(filter(shutil.which, ("prometheus-alertmanager", "alertmanager")), None)
PROGRAMS_ARE_HERE = bool(ALERTMANAGER and shutil.which("prometheus") and shutil.which("promtool"))

pytestmark = pytest.mark.skipif(
    not PROGRAMS_ARE_HERE and os.environ.get("CI") != "true",
    reason="needs Prometheus and Alertmanager: run scripts/provision.sh serve",
)


def can_use_core():
    return os.geteuid() == 0 and any(engine.startswith("core") for engine in ENGINES)


def promtool(*arguments, stdin=None):
    return subprocess.run(
        ["promtool", *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )


@contextmanager
def running(log, *command):
    """Run a program until the block ends."""
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            yield
        finally:
            process.kill()


def get_json(url, **parameters):
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(parameters)}", timeout=30) as response:
        return json.load(response)


def is_up(url):
    with suppress(OSError):
        urllib.request.urlopen(url, timeout=5).close()
        return True
    return False


class Receiver:
    """A webhook for Alertmanager. `alerts` has the alerts that it has received, oldest first."""

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

    def statuses(self, name, **labels):
        """Return the status ("firing" or "resolved") of each notification of an alert, oldest first."""
        expected = {"alertname": name, **labels}
        return [alert["status"] for alert in self.alerts if expected.items() <= alert["labels"].items()]


class Monitoring:
    """A daemon that expects a port to be open, a Prometheus that scrapes the daemon, and an Alertmanager."""

    def __init__(self, stack, directory, engine):
        self.expected_port = free_port()
        self.receiver = Receiver(stack)
        self.daemon = stack.enter_context(
            serving("--metrics-ephemeral", "--expect", f"tcp/{self.expected_port}", engine=engine)
        )
        alertmanager, prometheus = free_port(), free_port()
        self.url = f"http://127.0.0.1:{prometheus}"
        stack.enter_context(
            running(
                directory / "alertmanager.log",
                ALERTMANAGER,
                f"--config.file={self._alertmanager(directory)}",
                f"--storage.path={directory / 'alertmanager'}",
                f"--web.listen-address=127.0.0.1:{alertmanager}",
                "--cluster.listen-address=",
            )
        )
        wait_until(lambda: is_up(f"http://127.0.0.1:{alertmanager}/-/ready"), "Alertmanager")
        stack.enter_context(
            running(
                directory / "prometheus.log",
                "prometheus",
                f"--config.file={self._prometheus(directory, alertmanager)}",
                f"--storage.tsdb.path={directory / 'prometheus'}",
                f"--web.listen-address=127.0.0.1:{prometheus}",
            )
        )
        wait_until(lambda: is_up(f"{self.url}/-/ready"), "Prometheus")

    def _alertmanager(self, directory):
        route = {"receiver": "test", "group_wait": "10ms", "group_interval": "100ms", "group_by": ["..."]}
        hook = {"url": f"http://127.0.0.1:{self.receiver.port}/", "send_resolved": True}
        path = directory / "alertmanager.yml"
        # JSON is valid YAML.
        path.write_text(
            json.dumps({"route": route, "receivers": [{"name": "test", "webhook_configs": [hook]}]})
        )
        return path

    def _prometheus(self, directory, alertmanager):
        rules = directory / "rules.yml"
        rules.write_text(RULES.read_text().replace("for: 1m", "for: 0s"))
        path = directory / "prometheus.yml"
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
        """Return the series that an expression selects now."""
        answer = get_json(f"{self.url}/api/v1/query", query=expression)
        assert answer["status"] == "success"
        return answer["data"]["result"]

    def value(self, expression):
        return next((float(series["value"][1]) for series in self.query(expression)), None)


def targets(port):
    return {"static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}


@pytest.fixture(
    scope="module",
    params=[
        "poll",
        pytest.param("core", marks=pytest.mark.skipif(not can_use_core(), reason="the engine core needs root")),
    ],
)
def monitoring(request, tmp_path_factory):
    assert PROGRAMS_ARE_HERE, "CI must install Prometheus: run scripts/provision.sh serve"
    engine = POLL if request.param == "poll" else ("--engine", "core", "--netns", "self")
    with ExitStack() as stack:
        yield Monitoring(stack, tmp_path_factory.mktemp("monitoring"), engine)


def test_promtool_accepts_the_metrics(monitoring):
    with socket.create_server(("127.0.0.1", 0)) as server:
        wait_until(
            lambda: b'port="%d"' % server.getsockname()[1] in monitoring.daemon.request("/metrics")[2],
            "the port",
        )
        result = promtool("check", "metrics", stdin=monitoring.daemon.request("/metrics")[2].decode())
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_series_appears_at_the_scrape_after_its_port_opens_and_disappears_after_it_closes(monitoring):
    wait_until(lambda: monitoring.value('up{job="portwatch"}') == 1, "a scrape")
    with socket.create_server(("127.0.0.1", 0)) as server:
        series = f'portwatch_listening_port{{proto="tcp", port="{server.getsockname()[1]}"}}'
        (port,) = wait_until(lambda: monitoring.query(series), "the port")
        assert port["metric"]["address"] == "127.0.0.1"
        assert port["metric"]["process"]
    wait_until(lambda: not monitoring.query(series), "the port to disappear")


def test_the_alert_for_an_expected_port_fires_only_while_the_port_is_closed(monitoring):
    port = monitoring.expected_port
    labels = {"proto": "tcp", "port": str(port), "severity": "critical"}
    wait_until(
        lambda: monitoring.receiver.statuses("ExpectedPortDown", **labels)[:1] == ["firing"], "the alert"
    )
    with socket.create_server(("127.0.0.1", port)):
        wait_until(lambda: monitoring.value(f'portwatch_expected_port_up{{port="{port}"}}') == 1, "the port")
        wait_until(
            lambda: monitoring.receiver.statuses("ExpectedPortDown", **labels)[-1] == "resolved",
            "the alert to resolve",
        )


def queries():
    return [
        pytest.param(target["expr"], id=f"{panel['title']}, {target['refId']}")
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    ]


@pytest.mark.parametrize("expression", queries())
def test_each_query_of_the_dashboard_returns_data(monitoring, expression):
    for name, value in {"$job": ".*", "$instance": ".*", "$__rate_interval": "5s"}.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    wait_until(lambda: monitoring.query(expression), expression)


@pytest.mark.parametrize("rule", re.findall(r"alert: (\w+)", RULES.read_text()))
def test_prometheus_evaluates_each_alert_rule_without_error(monitoring, rule):
    groups = wait_until(
        lambda: [
            group
            for group in get_json(f"{monitoring.url}/api/v1/rules")["data"]["groups"]
            if group["rules"][0]["health"] != "unknown"
        ],
        "the rules to be evaluated",
    )
    (state,) = [state for group in groups for state in group["rules"] if state["name"] == rule]
    assert (state["health"], state.get("lastError", "")) == ("ok", "")


def test_the_alert_rules_pass_their_unit_tests():
    result = promtool("test", "rules", RULES.with_suffix(".test.yml"))
    assert result.returncode == 0, result.stdout + result.stderr


def test_promtool_accepts_the_example_configuration():
    result = promtool("check", "config", RULES.with_name("prometheus.yml"))
    assert result.returncode == 0, result.stdout + result.stderr


def test_panels_of_the_dashboard_do_not_overlap():
    cells = [
        (x, y)
        for position in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(position["x"], position["x"] + position["w"])
        for y in range(position["y"], position["y"] + position["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
