"""The journal: cost of write() to its caller, time until an event is durable, and disk space."""

import json
import os
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

from common import begin, judge, number, percentile, seconds, show

from portwatch.event import Event
from portwatch.model import Process
from portwatch.outputs.journal import Journal, Reader
from portwatch.outputs.journal.writer import CAPACITY

EVENTS = 100_000
SINGLE = 40
"""Number of events that are written one by one."""
OPENER = Process(4242, time.time_ns(), "nginx", 33)
MEGABYTE = 2**20


def event(seq):
    return Event(
        seq,
        time.time_ns(),
        "open",
        "event",
        "tcp",
        "ipv4",
        "127.0.0.1",
        1024 + seq % 60_000,
        mptcp=False,
        backlog=128,
        exposure="loopback",
        pid=4242,
        ns_pid=7,
        start_time=OPENER.start_time,
        process="nginx",
        uid=33,
        netns=4_026_531_833,
        cgroup="/system.slice/nginx.service",
        inode=345_678 + seq,
        cookie=0x138A + seq,
        sockets=1,
        opener=OPENER,
        engine="core",
    )


def wait_for(journal, seq):
    while journal.last_seq != seq:
        time.sleep(0.0005)


def sync_page(folder):
    """Return the seconds that the disk takes to write and sync one page."""
    with (folder / "page").open("wb", buffering=0) as file:

        def once():
            file.write(bytes(4096))
            os.fsync(file.fileno())

        return statistics.median(seconds(once) for _ in range(SINGLE))


def latencies(journal):
    """Return two lists of the seconds from `write` until an event is durable, each for SINGLE events.

    In the first list, the events are written 0.3 s apart; in the second, back to back.
    """

    def write_durably(seq):
        return seconds(lambda: (journal.write(event(seq)), wait_for(journal, seq)))

    spaced = []
    for seq in range(1, SINGLE + 1):
        time.sleep(0.3)
        spaced.append(write_durably(seq))
    return spaced, [write_durably(seq) for seq in range(SINGLE + 1, 2 * SINGLE + 1)]


def write_all(journal):
    """Write EVENTS events; return the microseconds of each `write`, and the seconds until all are durable."""
    first = 2 * SINGLE + 1
    events = [event(seq) for seq in range(first, first + EVENTS)]
    costs = []
    start = time.perf_counter()
    for entry in events:
        while entry.seq - journal.last_seq > CAPACITY // 2:
            time.sleep(0.001)
        before = time.perf_counter_ns()
        journal.write(entry)
        costs.append((time.perf_counter_ns() - before) / 1000)
    wait_for(journal, events[-1].seq)
    return costs, time.perf_counter() - start


def main():
    begin(f"The journal: {EVENTS:,} events")
    with tempfile.TemporaryDirectory(dir=".") as name:  # /tmp may be a tmpfs
        folder = Path(name)
        show("the disk alone: write and fsync of 4 KiB", f"{1000 * sync_page(folder):.2f} ms")
        path = folder / "journal"
        with closing(Journal(path, max_age=1e9, max_bytes=1024 * MEGABYTE)) as journal:
            journal.start()
            spaced, back_to_back = latencies(journal)
            costs, took = write_all(journal)
            lost = journal.lost
        size = path.stat().st_size / (EVENTS + 2 * SINGLE)
        judge("time until durable, events 0.3 s apart: p99", percentile(spaced, 99), "s", most=1)
        show("time until durable, events 0.3 s apart: p50", f"{1000 * statistics.median(spaced):.1f} ms")
        judge("time until durable, events back to back: p99", percentile(back_to_back, 99), "s", most=1)
        judge("events a second, all durable", EVENTS / took, "", least=10_000)
        show("events lost", number(lost))
        judge("cost of write() to its caller: p50", statistics.median(costs), "µs", most=5)
        show("cost of write() to its caller: p99", f"{percentile(costs, 99):.1f} µs")
        line = len(event(EVENTS).to_json())
        judge("bytes on disk for an event", size, "", most=1.5 * line)
        show("bytes of its line of JSON", number(line))
        reader = Reader(path)
        took = seconds(lambda: sum(1 for _ in reader.events()))
        show("query: all, events a second", number((EVENTS + 2 * SINGLE) / took))
        took = seconds(lambda: [json.loads(line) for line in reader.events(newest_first=True, limit=100)])
        show("query: the newest 100", f"{1000 * took:.1f} ms")
        took = seconds(lambda: list(reader.events(ports=((2000, 2000),))))
        show(f"query: one port among {EVENTS:,} events", f"{1000 * took:.1f} ms")


if __name__ == "__main__":
    main()
