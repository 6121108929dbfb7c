"""The journal, on real files: what it keeps, and what it gives back."""

import json
import sqlite3
import threading
import time
from contextlib import closing

import pytest
from journals import event, opened, seqs, written
from support import wait_until

from portwatch.errors import JournalError
from portwatch.model import Process
from portwatch.outputs.journal import Reader
from portwatch.outputs.journal.writer import MIN_BYTES

WORKER = Process(11, 2_000_000_000, "worker", 33)
HOUR = 3_600 * 1_000_000_000


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.db"


def test_what_is_written_is_read_back_as_the_line_that_everybody_gets(path):
    events = [event(1), event(2, kind="gap", port=None, process=None, opener=None, lost=3)]
    written(path, *events)
    assert list(Reader(path).events()) == [one.to_json() for one in events]


def test_a_journal_is_only_its_owners_to_read(path):
    with opened(path) as journal:
        journal.start()
        journal.write(event(1))
        wait_until(lambda: journal.last_seq == 1, "the event on disk")
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


def test_a_question_that_takes_too_long_is_given_up(path):
    written(path, *(event(seq) for seq in range(1, 5001)))
    with pytest.raises(JournalError, match="has no answer within 0 s: ask for less"):
        list(Reader(path, time_limit=0).events(process=("nobody*",)))


@pytest.mark.parametrize("line", ['{"seq": 2, "ti', "[]", ""])
def test_a_damaged_line_is_said_and_not_handed_on(path, line):
    written(path, event(1), event(2))
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE events SET line = ? WHERE seq = 2", (line,))
    lines = Reader(path).events()
    assert json.loads(next(lines))["seq"] == 1
    with pytest.raises(JournalError, match="is damaged: it holds"):
        next(lines)


def test_what_is_no_event_is_said(path):
    written(path, event(1))
    with pytest.raises(JournalError, match="is damaged: it holds"):
        Reader(path).event("{}")


def test_it_is_read_while_it_is_written(path):
    read = []
    with opened(path) as journal:
        journal.start()
        ended = threading.Event()

        def read_on():
            while not ended.is_set():
                read.append(seqs(path))

        readers = [threading.Thread(target=read_on) for _ in range(3)]
        for reader in readers:
            reader.start()
        for seq in range(1, 3001):
            journal.write(event(seq))
            if not seq % 100:
                time.sleep(0.02)
        wait_until(lambda: journal.last_seq == 3000, "the last event on disk")
        ended.set()
        for reader in readers:
            reader.join()
        assert journal.trouble is None
    assert all(found == list(range(1, len(found) + 1)) for found in read)
    assert len({len(found) for found in read}) > 2
    assert seqs(path) == list(range(1, 3001))


def test_a_reader_that_pauses_keeps_nothing_from_being_written_or_deleted(path):
    with opened(path, max_bytes=MIN_BYTES) as journal:
        journal.start()
        for seq in range(1, 1001):
            journal.write(event(seq))
        wait_until(lambda: journal.last_seq == 1000, "the first thousand on disk")
        lines = Reader(path).events()
        next(lines)
        for seq in range(1001, 15_001):
            journal.write(event(seq))
        wait_until(lambda: journal.last_seq == 15_000, "the rest on disk")
        assert bytes_of(path) <= MIN_BYTES
        assert json.loads(list(lines)[-1])["seq"] == 15_000


def bytes_of(path):
    """Of the file and its WAL."""
    return sum(one.stat().st_size for one in path.parent.glob("journal.db*"))


def test_events_that_are_too_old_go_and_give_their_space_back(path):
    now = time.time_ns()
    written(path, *(event(seq, time=now - 3 * HOUR) for seq in range(1, 5001)))
    before = bytes_of(path)
    with opened(path, max_age=2 * 3_600, max_bytes=MIN_BYTES) as journal:
        journal.start()
        journal.write(event(5001, time=now - HOUR))
        wait_until(lambda: seqs(path) == [5001], "the old ones gone")
        wait_until(lambda: journal.last_seq == 5001, "the new one there")
    assert bytes_of(path) < before / 2


def test_the_oldest_go_when_there_are_too_many(path):
    sizes = []
    with opened(path, max_bytes=MIN_BYTES) as journal:
        journal.start()
        for last in range(3_000, 30_001, 3_000):
            for seq in range(last - 2_999, last + 1):
                journal.write(event(seq))
            wait_until(
                lambda last=last: sizes.append(bytes_of(path)) or journal.last_seq == last, "them on disk"
            )
        assert journal.lost == 0
    kept = seqs(path)
    assert kept == list(range(kept[0], 30_001))
    assert len(kept) > 5000
    assert max(sizes) <= MIN_BYTES


def test_a_journal_that_may_be_smaller_from_now_on_shrinks(path):
    written(path, *(event(seq) for seq in range(1, 25_001)))
    before = bytes_of(path)
    assert before > MIN_BYTES
    with opened(path, max_bytes=MIN_BYTES) as journal:
        journal.start()
        journal.write(event(25_001))
        wait_until(lambda: bytes_of(path) <= MIN_BYTES, "the file small enough")
    kept = seqs(path)
    assert kept == list(range(kept[0], 25_002))
    assert len(kept) > 5000


def test_what_is_written_waits_neither_for_the_disk_nor_for_its_thread(path):
    with opened(path) as journal:
        for seq in range(1, 101):
            journal.write(event(seq))
        assert journal.last_seq is None
        journal.start()
        wait_until(lambda: journal.last_seq == 100, "them on disk")


def test_what_cannot_wait_is_counted(path, monkeypatch):
    monkeypatch.setattr("portwatch.outputs.journal.writer.CAPACITY", 10)
    with opened(path) as journal:
        for seq in range(1, 14):
            journal.write(event(seq))
        assert journal.lost == 3
        journal.start()
    assert seqs(path) == list(range(1, 11))


def test_what_comes_after_the_end_is_counted(path):
    with opened(path) as journal:
        journal.start()
    journal.write(event(1))
    assert journal.lost == 1


def test_what_was_never_to_be_written_is_counted(path):
    with opened(path) as journal:
        journal.write(event(1))
    assert journal.lost == 1
