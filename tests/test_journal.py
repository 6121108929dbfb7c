"""The journal, on real files: what it keeps, gives back, and survives."""

import json
import time
from contextlib import closing

import pytest
from support import until

from portwatch.model import Event, Process
from portwatch.outputs.journal import Journal, Reader

A_CENTURY = 36_525 * 86_400
NGINX = Process(10, 1_000_000_000, "nginx", 33)
WORKER = Process(11, 2_000_000_000, "worker", 33)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.db"


def opened(path, max_age=A_CENTURY, max_bytes=64 * 2**20):
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


def written(path, *events):
    with opened(path) as journal:
        journal.start()
        for one in events:
            journal.write(one)


def seqs(path, **asked):
    return [json.loads(line)["seq"] for line in Reader(path).events(**asked)]


def test_what_is_written_is_read_back_as_the_line_that_everybody_gets(path):
    events = [event(1), event(2, kind="gap", port=None, process=None, opener=None, lost=3)]
    written(path, *events)
    assert list(Reader(path).events()) == [one.to_json() for one in events]


def test_a_journal_is_only_its_owners_to_read(path):
    with opened(path) as journal:
        journal.start()
        journal.write(event(1))
        until(lambda: journal.last_seq == 1, "the event on disk")
        files = sorted(path.parent.iterdir())
        assert [one.name for one in files] == [path.name + end for end in ("", "-lock", "-shm", "-wal")]
        assert {one.stat().st_mode & 0o777 for one in files} == {0o600}


def test_a_journal_goes_on_where_it_ended(path):
    written(path, event(7), event(9))
    with opened(path) as journal:
        assert journal.last_seq == 9
        journal.start()
        journal.write(event(10))
    assert seqs(path) == [7, 9, 10]


def test_a_seq_that_is_there_stays_as_it_is(path):
    written(path, event(1, port=80))
    written(path, event(1, port=81), event(2))
    assert [json.loads(line)["port"] for line in Reader(path).events()] == [80, 8080]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, [1, 2, 3, 5]),
        ({"after": 1}, [2, 3, 5]),
        ({"after": 4}, [5]),
        ({"after": 5}, []),
        ({"before": 3}, [1, 2]),
        ({"after": 1, "before": 5}, [2, 3]),
        ({"since": 300}, [3, 5]),
        ({"since": 301}, [5]),
        ({"since": 501}, []),
        ({"until": 300}, [1, 2, 3]),
        ({"until": 99}, []),
        ({"since": 200, "until": 300, "after": 2}, [3]),
        ({"since": -(2**80), "until": 2**80}, [1, 2, 3, 5]),
        ({"ports": ((80, 80),)}, [1, 3]),
        ({"ports": ((79, 81), (443, 443))}, [1, 2, 3]),
        ({"process": ("ngin?",)}, [1, 2, 3]),
        ({"process": ("WORKER",)}, [3]),
        ({"process": ("work*", "[!a]gin*")}, [1, 2, 3, 5]),
        ({"kind": ("open",)}, [1, 5]),
        ({"kind": ("open", "gap"), "ports": ((8080, 8080),)}, [3, 5]),
        ({"limit": 2}, [1, 2]),
        ({"limit": 0}, []),
        ({"limit": 2, "newest_first": True}, [5, 3]),
        ({"newest_first": True, "before": 5}, [3, 2, 1]),
    ],
    ids=str,
)
def test_a_reader_finds(path, asked, found):
    gap = {"kind": "gap", "port": None, "process": None, "opener": None}
    written(
        path,
        event(1, time=100, port=80),
        event(2, time=200, port=443, kind="close", process="worker"),
        event(3, time=300, **gap),
        event(5, time=500, process="worker", opener=WORKER),
    )
    assert seqs(path, **asked) == found


def test_a_reader_knows_exactly_the_seqs_that_are_there(path):
    written(path, event(1), event(3))
    reader = Reader(path)
    assert [reader.has(seq) for seq in (0, 1, 2, 3, 4)] == [False, True, False, True, False]
