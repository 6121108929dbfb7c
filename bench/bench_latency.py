"""From the listen to whoever wants to know: by callback, by the bare engine, and by asking ss."""

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


def open_and_close():
    while True:
        with socket.create_server(("127.0.0.1", 0)):
            time.sleep(PAUSE)
        time.sleep(PAUSE)


def microseconds(values):
    return " · ".join(f"p{p} {percentile(values, p) / 1000:,.0f} µs" for p in (50, 90, 99, 100))


def of_callback(pid):
    found = {"open": [], "close": []}

    def note(event):
        late = time.time_ns() - event.time
        if event.ns_pid == pid:
            found[event.kind].append(late)

    with PortWatcher(callback=note, snapshot=False) as watcher:
        watcher.listeners()  # returns when what the start left to do is done
        found["open"].clear()
        found["close"].clear()
        time.sleep(2 * PAUSE * PAIRS)
    return found["open"], found["close"]


def of_engine(pid):
    found = []
    engine = CoreEngine()
    engine.attach()
    while len(found) < PAIRS:
        records = engine.read(None)
        now = time.time_ns()
        found += [
            now - one.time for one in records if one.kind == "open" and one.actor and one.actor.ns_pid == pid
        ]
    engine.detach()
    return found


@contextmanager
def listener_at_some_moment(interval):
    """A child that says its port, waits for a while, listens, and says when that was."""
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


def of_polling(interval, count):
    found = []
    with listener_at_some_moment(interval) as child:
        for _ in range(count):
            ending = f":{child.recv(16).decode()} ".encode()
            due = time.monotonic()
            while ending not in subprocess.check_output(("ss", "-Hlnt")):
                due += interval
                time.sleep(max(0, due - time.monotonic()))
            now = time.time_ns()
            found.append(now - int(child.recv(32)))
            child.send(b"x")
    return found


def main():
    begin("How late: from the kernel's time of a listen to the moment somebody has been told")
    with forked(open_and_close) as pid:
        opened, closed = of_callback(pid)
        bare = of_engine(pid)
    judge("listen → callback, p50", percentile(opened, 50) / 1000, "µs", most=150)
    judge("listen → callback, p99", percentile(opened, 99) / 1000, "µs", most=1000)
    show("listen → callback", microseconds(opened))
    show("close → callback", microseconds(closed))
    show("listen → CoreEngine.read", microseconds(bare))
    for interval, count in POLLS.items():
        show(f"listen → seen by `ss -Hlnt` every {interval:g} s", microseconds(of_polling(interval, count)))


if __name__ == "__main__":
    main()
