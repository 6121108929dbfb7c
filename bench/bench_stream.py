"""The event stream at 1,000 events a second: 1,000 subscribers, subscribers with a scope, and idle ones."""

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
SCOPED = 100
IDLE = 100
PAIRS_A_SECOND = 500
SECONDS = 10.0
PAUSE = 1.0
"""Seconds between connecting the subscribers and the first event."""
_DATA = b"\ndata: "
_TICKS = os.sysconf("SC_CLK_TCK")


class Client:
    """A subscriber that counts its events. `query` may give it a scope."""

    def __init__(self, port, query=""):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.sendall(f"GET /api/v0/events{query} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        while b"retry" not in self.socket.recv(4096):
            pass
        self.socket.setblocking(False)
        self.count = 0
        self._tail = b""

    def read(self):
        """Read data and count its events. Return it unparsed, because parsing it all would take too long."""
        data = self.socket.recv(1 << 20)
        received = self._tail + data
        self.count += received.count(_DATA)
        self._tail = received[-len(_DATA) + 1 :]
        return data

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


def open_and_close(pairs):
    """Open and close ports that the kernel chooses, at an even pace."""
    begin = time.monotonic()
    for number in range(pairs):
        with socket.create_server(("127.0.0.1", 0)):
            pass
        time.sleep(max(0.0, begin + (number + 1) / PAIRS_A_SECOND - time.monotonic()))


def read_all(clients, expected):
    """Read until each client has `expected` events, or the time is up.

    Return the nanoseconds from each event's kernel timestamp until the first client read it.
    """
    delays, rest = [], b""
    waiting = set(clients)
    deadline = time.monotonic() + SECONDS + 30
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
        while waiting and time.monotonic() < deadline:
            for key, _ in selector.select(0.5):
                client = key.data
                data = client.read()
                if client is clients[0]:
                    now = time.time_ns()
                    *lines, rest = (rest + data).split(b"\n")
                    delays += [now - kernel_time(line) for line in lines if line.startswith(_DATA[1:])]
                if client.count >= expected:
                    waiting.discard(client)
    return delays


def kernel_time(line):
    text = json.loads(line[6:])["time"].rstrip("Z")
    whole, _, fraction = text.partition(".")
    seconds = int(time.mktime(time.strptime(whole, "%Y-%m-%dT%H:%M:%S"))) - time.timezone
    return seconds * 1_000_000_000 + int(fraction.ljust(9, "0"))


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def measure(what, pid, port, subscribers, query="", idle=0):
    """Print the figures for `subscribers` clients that read the stream and `idle` clients that never read."""
    pairs = int(PAIRS_A_SECOND * SECONDS)
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(port, query)) for _ in range(subscribers)]
        for _ in range(idle):
            stack.enter_context(Client(port))
        time.sleep(PAUSE)
        before, begun = cpu_seconds(pid), time.monotonic()
        with forked(lambda: open_and_close(pairs)):
            delays = read_all(clients, 2 * pairs)
        took, cpu = time.monotonic() - begun, cpu_seconds(pid) - before
        counts = [client.count for client in clients]
        show(what, f"{2 * pairs / took:,.0f} events a second for {took:.1f} s")
        show("  events for each subscriber", f"{min(counts):,} to {max(counts):,} of {2 * pairs:,}")
        show("  CPU time of the daemon", f"{cpu / took:.2f} s a second")
        show("  RSS of the daemon", f"{megabytes(pid):.0f} MB")
        spread = f"p50 {statistics.median(delays) / 1e6:.1f} ms, p99 {percentile(delays, 99) / 1e6:.1f}"
        show("  delay from the kernel to a subscriber", spread)


def enter_new_namespace():
    """Restart this program in a new network namespace, where no other program opens ports."""
    if not os.environ.get("ALONE"):
        setup = 'ip link set lo up && exec "$@"'
        os.environ["ALONE"] = "yes"
        os.execvp("unshare", ["unshare", "--net", "sh", "-c", setup, "sh", sys.executable, *sys.argv])  # noqa: S606  # the shell runs only a fixed string


def main():
    enter_new_namespace()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    begin("The event stream with many subscribers")
    with daemon("--netns", "self") as (pid, port):
        show("RSS without subscribers", f"{megabytes(pid):.0f} MB")
        for subscribers in SUBSCRIBERS:
            measure(f"{subscribers:,} subscriber{'s' * (subscribers > 1)}", pid, port, subscribers)
        measure(
            f"{SCOPED:,} subscribers with a scope", pid, port, SCOPED, query="?proto=tcp&not_process=nobody*"
        )
        measure(f"1 subscriber and {IDLE:,} that never read", pid, port, 1, idle=IDLE)


if __name__ == "__main__":
    main()
