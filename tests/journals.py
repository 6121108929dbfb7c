"""What the tests of the journal share."""

import json
import time
from contextlib import closing

from support import wait_until

from portwatch.event import Event
from portwatch.model import Process
from portwatch.outputs.journal import Journal, Reader

A_CENTURY = 36_525 * 86_400
NGINX = Process(10, 1_000_000_000, "nginx", 33)


def opened(path, max_age=A_CENTURY, max_bytes=64 * 2**20):
    """A journal, until the block ends."""
    return closing(Journal(path, max_age=max_age, max_bytes=max_bytes))


def event(seq, **fields):
    known = {
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
    return Event(seq, **{**known, **fields})


def written(path, *events, **limits):
    """Opens a journal, writes these, and closes it."""
    with opened(path, **limits) as journal:
        journal.start()
        for one in events:
            journal.write(one)
        wait_until(lambda: (journal.last_seq or 0) >= events[-1].seq, "them on disk")


def seqs(path, **asked):
    """What a reader finds."""
    return [json.loads(line)["seq"] for line in Reader(path).events(**asked)]
