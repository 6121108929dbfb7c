"""Latency from listen() to its report: to a callback, by the engine alone, and by polling ss."""

import random
import socket
import subprocess
import time
from contextlib import contextmanager

from common import begin, forked, judge, percentile, show

from portwatch import PortWatcher
from portwatch.engines.core.engine import CoreEngine

PAUSE = 0.01
PAIRS = 500
POLLS = {0.1: 60, 1.0: 12}
"""The polling intervals in seconds, and the number of listens to measure with each."""


def open_and_close():
    while True:
        with socket.create_server(("127.0.0.1", 0)):
            time.sleep(PAUSE)
        time.sleep(PAUSE)


def microseconds(values):
    return " · ".join(f"p{p} {percentile(values, p) / 1000:,.0f} µs" for p in (50, 90, 99, 100))


def callback_delays(pid):
    """Return the nanoseconds from each open, and from each close, to its callback."""
    delays = {"open": [], "close": []}

    def record(event):
        delay = time.time_ns() - event.time
        if event.ns_pid == pid:
            delays[event.kind].append(delay)

    with PortWatcher(callback=record, snapshot=False) as watcher:
        watcher.listeners()  # returns only after the start is complete
        delays["open"].clear()
        delays["close"].clear()
        time.sleep(2 * PAUSE * PAIRS)
    return delays["open"], delays["close"]


def engine_delays(pid):
    """Return the nanoseconds from each open to the return of the engine's `read`."""
    delays = []
    engine = CoreEngine()
    engine.attach()
    while len(delays) < PAIRS:
        records = engine.read(None)
        now = time.time_ns()
        delays += [
            now - record.time
            for record in records
            if record.kind == "open" and record.actor and record.actor.ns_pid == pid
        ]
    engine.detach()
    return delays


@contextmanager
def listener_at_random_times(interval):
    """Run a child that repeatedly sends its port, waits for a random time, listens, and sends the time."""
    ours, theirs = socket.socketpair()

    def listen():
        while True:
            with socket.socket() as server:
                server.bind(("127.0.0.1", 0))
                theirs.send(str(server.getsockname()[1]).encode())
                time.sleep(interval * (1 + random.random()))
                server.listen()
                theirs.send(str(time.time_ns()).encode())
                theirs.recv(1)

    with ours, theirs, forked(listen):
        yield ours


def polling_delays(interval, count):
    """Return the nanoseconds from each of `count` listens until a poll of `ss` shows it."""
    delays = []
    with listener_at_random_times(interval) as child:
        for _ in range(count):
            ending = f":{child.recv(16).decode()} ".encode()
            due = time.monotonic()
            while ending not in subprocess.check_output(("ss", "-Hlnt")):
                due += interval
                time.sleep(max(0, due - time.monotonic()))
            now = time.time_ns()
            delays.append(now - int(child.recv(32)))
            child.send(b"x")
    return delays


def main():
    begin("Latency: from the kernel's timestamp of a change to its report")
    with forked(open_and_close) as pid:
        opened, closed = callback_delays(pid)
        bare = engine_delays(pid)
    judge("listen → callback, p50", percentile(opened, 50) / 1000, "µs", most=150)
    judge("listen → callback, p99", percentile(opened, 99) / 1000, "µs", most=1000)
    show("listen → callback", microseconds(opened))
    show("close → callback", microseconds(closed))
    show("listen → CoreEngine.read", microseconds(bare))
    for interval, count in POLLS.items():
        show(f"listen → seen by `ss -Hlnt` every {interval:g} s", microseconds(polling_delays(interval, count)))


if __name__ == "__main__":
    main()
