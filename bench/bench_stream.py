"""1,000 subscribers and 1,000 events a second: what the daemon takes, and when the last one hears."""

import json
import os
import resource
import selectors
import socket
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from common import begin, daemon, forked, megabytes, percentile, show

SUBSCRIBERS = (1, 1000)
PAIRS_A_SECOND = 500
SECONDS = 10.0
SETTLE = 1.0
_TICKS = os.sysconf("SC_CLK_TCK")


def subscribe(port):
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(b"GET /api/v0/events HTTP/1.0\r\nHost: localhost\r\n\r\n")
    while b"retry" not in client.recv(4096):
        pass
    client.setblocking(False)
    return client


def open_and_close(pairs):
    """Ports that the kernel chooses, at an even pace."""
    begin = time.monotonic()
    for number in range(pairs):
        with socket.create_server(("127.0.0.1", 0)):
            pass
        time.sleep(max(0.0, begin + (number + 1) / PAIRS_A_SECOND - time.monotonic()))


def read_all(clients, expected):
    """How many events each got, and how long after the kernel's own time the first of them heard."""
    counts = dict.fromkeys(clients, 0)
    delays, first, rest = [], clients[0], b""
    deadline = time.monotonic() + SECONDS + 30
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client, selectors.EVENT_READ)
        while min(counts.values()) < expected and time.monotonic() < deadline:
            for key, _ in selector.select(0.5):
                data = key.fileobj.recv(1 << 20)
                counts[key.fileobj] += data.count(b"\nid: ") + data.startswith(b"id: ")
                if key.fileobj is first:
                    now = time.time_ns()
                    *lines, rest = (rest + data).split(b"\n")
                    delays += [now - kernels_time(line) for line in lines if line.startswith(b"data: ")]
    return counts, delays


def kernels_time(line):
    text = json.loads(line[6:])["time"].rstrip("Z")
    whole, _, fraction = text.partition(".")
    seconds = int(time.mktime(time.strptime(whole, "%Y-%m-%dT%H:%M:%S"))) - time.timezone
    return seconds * 1_000_000_000 + int(fraction.ljust(9, "0"))


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def measure(pid, port, subscribers):
    pairs = int(PAIRS_A_SECOND * SECONDS)
    with ExitStack() as stack:
        clients = [stack.enter_context(subscribe(port)) for _ in range(subscribers)]
        time.sleep(SETTLE)
        before, begun = cpu_seconds(pid), time.monotonic()
        with forked(lambda: open_and_close(pairs)):
            counts, delays = read_all(clients, 2 * pairs)
        took, cpu = time.monotonic() - begun, cpu_seconds(pid) - before
        show(
            f"{subscribers:,} subscriber{'s' * (subscribers > 1)}",
            f"{2 * pairs / took:,.0f} events a second for {took:.1f} s",
        )
        show("  each was told of", f"{min(counts.values()):,} to {max(counts.values()):,} of {2 * pairs:,}")
        show("  the daemon's CPU", f"{cpu / took:.2f} s a second")
        show("  its memory", f"{megabytes(pid):.0f} MB")
        spread = f"p50 {statistics.median(delays) / 1e6:.1f} ms, p99 {percentile(delays, 99) / 1e6:.1f}"
        show("  from the kernel to a subscriber", spread)


def in_a_namespace_of_our_own():
    """Goes on there: what others open here would be told of, too."""
    if not os.environ.get("ALONE"):
        setup = 'ip link set lo up && exec "$@"'
        os.environ["ALONE"] = "yes"
        os.execvp("unshare", ["unshare", "--net", "sh", "-c", setup, "sh", sys.executable, *sys.argv])  # noqa: S606  # no shell reads what varies


def main():
    in_a_namespace_of_our_own()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    begin("The stream, with many subscribers")
    with daemon("--netns", "self") as (pid, port):
        show("at rest", f"{megabytes(pid):.0f} MB")
        for subscribers in SUBSCRIBERS:
            measure(pid, port, subscribers)


main()
