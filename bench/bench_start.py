"""Time from the start of `portwatch tail` to the first line of its snapshot. By then, tracing has started."""

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


def seconds_until_line(command, is_expected):
    """Return the seconds from the start of a command to the first line of output that `is_expected` accepts."""
    start = time.perf_counter()
    with running(*command) as process:
        for line in process.stdout:
            if is_expected(line):
                return time.perf_counter() - start
    raise SystemExit(f"   {command[0]} exited without the expected line")


def assert_traces_after_snapshot(command, port):
    """Check that a port that is opened right after the snapshot was printed is reported as an event."""
    with running(*command) as process:
        next(line for line in process.stdout if json.loads(line)["port"] == port)
        with socket.create_server(("127.0.0.1", 0)) as server:
            new = server.getsockname()[1]
            event = next(event for event in map(json.loads, process.stdout) if event["port"] == new)
            assert event["origin"] == "event", event


def milliseconds(values):
    return " · ".join(f"p{p} {1000 * percentile(values, p):.0f} ms" for p in (50, 90, 100))


def main():
    begin("Start-up: from the start of the process to its first line")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        times = {"python -c pass": [], "python -c 'import click'": [], "portwatch tail": []}
        tail = (COMMAND, "tail", "--json", "--engine", "core")
        assert_traces_after_snapshot(tail, port)
        for _ in range(RUNS):
            times["portwatch tail"].append(seconds_until_line(tail, lambda line: b'"port":%d,' % port in line))
            for imports in ("pass", "import click"):
                name = next(name for name in times if imports in name)
                times[name].append(seconds(lambda command=imports: run(sys.executable, "-c", command)))
            if installed("bpftrace"):
                times.setdefault("bpftrace, one tracepoint", []).append(
                    seconds_until_line(BPFTRACE, b"ready\n".__eq__)
                )
    judge("portwatch tail, p50", 1000 * percentile(times["portwatch tail"], 50), "ms", most=150)
    for name, values in times.items():
        show(name, milliseconds(values))


if __name__ == "__main__":
    main()
