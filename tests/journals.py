"""Helpers for the tests of the journal."""

import json
import time
from contextlib import closing

from support import wait_until

from portwatch.event import Event
from portwatch.model import Process
from portwatch.outputs.journal import Journal, Reader

CENTURY = 36_525 * 86_400
NGINX = Process(10, 1_000_000_000, "nginx", 33)


def open_journal(path, max_age=CENTURY, max_bytes=64 * 2**20):
    """Return a context manager that closes the journal at its end."""
    return closing(Journal(path, max_age=max_age, max_bytes=max_bytes))


def event(seq, **fields):
    defaults = {
        "time": time.time_ns(),
        "kind": "open",
        "origin": "event",
        "proto": "tcp",
        "family": "ipv4",
        "address": "127.0.0.1",
        "port": 8080,
        "pid": NGINX.pid,
        "process": NGINX.process,
        "opener": NGINX,
    }
    return Event(seq, **{**defaults, **fields})


def write_journal(path, *events, **limits):
    """Open a journal, write events, wait until they are durable, and close it."""
    with open_journal(path, **limits) as journal:
        journal.start()
        for written in events:
            journal.write(written)
        wait_until(lambda: (journal.last_seq or 0) >= events[-1].seq, "the events to be durable")


def wait_for_seq(journal, seq):
    """Wait until the event with this seq is the newest durable event."""
    wait_until(lambda: journal.last_seq == seq, f"event {seq} to be durable")


def seqs(path, **query):
    """Return the seqs of the events that match a query."""
    return [json.loads(line)["seq"] for line in Reader(path).events(**query)]


def bytes_of(path):
    """Return the total size of all files of a journal."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
