"""Duration of a scrape with 10,000 listeners, and delay of events during scrapes."""

import http.client
import json
import os
import resource
import signal
import socket
import statistics
import time
from contextlib import ExitStack

from common import begin, daemon, forked, judge, megabytes, percentile, seconds, show

PROCESSES = 20
LISTENERS = 500
SCRAPES = 30
BLOCKS = 5
EVENTS = 200
PAUSE = 0.003
"""Seconds between two listens."""
PAUSE_BEFORE = 5.0
"""Seconds from the start of the daemon to the first measurement."""
TEXT = {"Accept": "text/plain;version=0.0.4"}
OPENMETRICS = {"Accept": "application/openmetrics-text;version=1.0.0", "Accept-Encoding": "gzip"}


def hold(number, ready):
    """Listen on LISTENERS ports of an address that only this process uses. Run until killed."""
    servers = [socket.create_server((f"127.2.0.{number + 1}", 20_000 + port)) for port in range(LISTENERS)]
    os.write(ready, b"x")
    signal.pause()
    del servers


def start_processes(stack):
    """Start the listening processes. Return once all of them listen."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (LISTENERS + 50, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    read_end, ready = os.pipe()
    for number in range(PROCESSES):
        stack.enter_context(forked(lambda number=number: hold(number, ready)))
    for _ in range(PROCESSES):
        os.read(read_end, 1)


class Daemon:
    """The daemon that is measured."""

    def __init__(self, pid, port):
        self.pid = pid
        self._port = port

    def get(self, path, headers):
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        connection.request("GET", path, headers=headers)
        return connection.getresponse()

    def scrape(self, headers):
        return self.get("/metrics", headers).read()

    def scrapes(self, headers):
        return [1000 * seconds(lambda: self.scrape(headers)) for _ in range(SCRAPES)]

    def wait_for(self, listeners):
        for _ in range(600):
            try:
                if self.scrape(TEXT).count(b"\nportwatch_listening_port{") >= listeners:
                    return
            except OSError:
                pass  # the daemon does not listen yet
            time.sleep(0.05)
        raise SystemExit("   the daemon did not report the listeners within 30 s")

    def delays(self):
        """Open EVENTS ports one after another, and return how many milliseconds later each event arrived."""
        stream = self.get("/api/v0/events", {})
        delays = []
        for _ in range(EVENTS):
            begin = time.perf_counter()
            with socket.create_server(("127.0.0.1", 0)) as server:
                port = server.getsockname()[1]
                while not is_open_of(port, stream.readline()):
                    pass
                delays.append(1000 * (time.perf_counter() - begin))
            time.sleep(PAUSE)
        return delays


def is_open_of(port, line):
    if not line.startswith(b"data: "):
        return False
    event = json.loads(line[6:])
    return (event["kind"], event["port"]) == ("open", port)


def scrape_forever(measured):
    while True:
        measured.scrape(OPENMETRICS)


def spread(values):
    return f"p50 {statistics.median(values):.1f} ms, p99 {percentile(values, 99):.1f}, max {max(values):.1f}"


def main():
    begin(f"Scrapes of {PROCESSES * LISTENERS:,} listeners")
    with daemon("--metrics-max-series", "100000") as (pid, port), ExitStack() as stack:
        measured = Daemon(pid, port)
        measured.wait_for(1)
        time.sleep(PAUSE_BEFORE)
        judge("RSS with few listeners", megabytes(pid), "MB", most=80)
        show("a scrape with few listeners", spread(measured.scrapes(OPENMETRICS)))
        start_processes(stack)
        measured.wait_for(PROCESSES * LISTENERS)
        for name, headers in (("text", TEXT), ("OpenMetrics, gzip", OPENMETRICS)):
            took = measured.scrapes(headers)
            judge(f"a scrape, {name}: the slowest of {SCRAPES}", max(took), "ms", most=250)
            show(f"a scrape, {name}", spread(took))
        quiet, busy = [], []
        for _ in range(BLOCKS):
            quiet += measured.delays()
            with forked(lambda: scrape_forever(measured)):
                busy += measured.delays()
        judge("listen → stream during continuous scrapes: the slowest", max(busy), "ms", most=20)
        show("listen → stream during continuous scrapes", spread(busy))
        show("listen → stream without scrapes", spread(quiet))
        show("RSS at the end", f"{megabytes(pid):.0f} MB")


if __name__ == "__main__":
    main()
