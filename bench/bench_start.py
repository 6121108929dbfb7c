"""From the start of `portwatch tail` to the moment it sees: its first line of what was open already."""

import json
import socket
import sys
import time

from common import COMMAND, begin, installed, judge, percentile, run, running, seconds, show

RUNS = 40
BPFTRACE = (
    "bpftrace",
    "-e",
    'BEGIN { printf("ready\\n"); } tracepoint:sock:inet_sock_set_state { @ = count(); }',
)


def until_line(command, expected):
    start = time.perf_counter()
    with running(*command) as process:
        for line in process.stdout:
            if expected(line):
                return time.perf_counter() - start
    raise SystemExit(f"   {command[0]} ended without the line that was waited for")


def assert_it_sees(command, port):
    """That a port is opened and seen as soon as the snapshot is there: what "ready" means."""
    with running(*command) as process:
        next(line for line in process.stdout if json.loads(line)["port"] == port)
        with socket.create_server(("127.0.0.1", 0)) as server:
            new = server.getsockname()[1]
            event = next(event for event in map(json.loads, process.stdout) if event["port"] == new)
            assert event["origin"] == "event", event


def milliseconds(values):
    return " · ".join(f"p{p} {1000 * percentile(values, p):.0f} ms" for p in (50, 90, 100))


def main():
    begin("How soon it sees: from the start of the process to its first line")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = {"python -c pass": [], "python -c 'import click'": [], "portwatch tail": []}
        tail = (COMMAND, "tail", "--json", "--engine", "core")
        assert_it_sees(tail, port)
        for _ in range(RUNS):
            found["portwatch tail"].append(until_line(tail, lambda line: b'"port":%d,' % port in line))
            for imports in ("pass", "import click"):
                name = next(name for name in found if imports in name)
                found[name].append(seconds(lambda command=imports: run(sys.executable, "-c", command)))
            if installed("bpftrace"):
                found.setdefault("bpftrace, one tracepoint", []).append(until_line(BPFTRACE, b"ready\n".__eq__))
    judge("portwatch tail, p50", 1000 * percentile(found["portwatch tail"], 50), "ms", most=150)
    for name, values in found.items():
        show(name, milliseconds(values))


if __name__ == "__main__":
    main()
