"""The journal on a working disk: writing, queries, and the age and size limits."""

import json
import sqlite3
import threading
import time
from contextlib import closing

import pytest
from journals import bytes_of, event, open_journal, seqs, wait_for_seq, write_journal
from support import wait_until

from portwatch.errors import JournalError
from portwatch.model import Process
from portwatch.outputs.journal import Reader
from portwatch.outputs.journal.schema import PAGE
from portwatch.outputs.journal.writer import MIN_BYTES

WORKER = Process(11, 2_000_000_000, "worker", 33)
HOUR = 3_600 * 1_000_000_000


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.db"


def test_events_are_read_back_as_the_json_lines_that_were_written(path):
    events = [event(1), event(2, kind="gap", port=None, process=None, opener=None, lost=3)]
    write_journal(path, *events)
    assert list(Reader(path).events()) == [written.to_json() for written in events]


def test_all_files_of_a_journal_have_mode_600(path):
    with open_journal(path) as journal:
        journal.start()
        journal.write(event(1))
        wait_for_seq(journal, 1)
        files = sorted(path.parent.iterdir())
        assert [file.name for file in files] == [path.name + end for end in ("", "-lock", "-shm", "-wal")]
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_new_events_are_added_to_an_existing_journal(path):
    write_journal(path, event(7), event(9))
    with open_journal(path) as journal:
        assert journal.last_seq == 9
        journal.start()
        journal.write(event(10))
    assert seqs(path) == [7, 9, 10]


def test_an_event_whose_seq_is_in_the_journal_already_is_ignored(path):
    write_journal(path, event(1, port=80))
    write_journal(path, event(1, port=81), event(2))
    assert [json.loads(line)["port"] for line in Reader(path).events()] == [80, 8080]


@pytest.mark.parametrize(
    ("query", "expected"),
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
def test_a_query_returns_the_events_that_match_every_argument(path, query, expected):
    gap = {"kind": "gap", "port": None, "process": None, "opener": None}
    write_journal(
        path,
        event(1, time=100, port=80),
        event(2, time=200, port=443, kind="close", process="worker"),
        event(3, time=300, **gap),
        event(5, time=500, process="worker", opener=WORKER),
    )
    assert seqs(path, **query) == expected


def test_has_is_true_only_for_seqs_in_the_journal(path):
    write_journal(path, event(1), event(3))
    reader = Reader(path)
    assert [reader.has(seq) for seq in (0, 1, 2, 3, 4)] == [False, True, False, True, False]


def test_a_query_that_exceeds_its_time_limit_is_an_error(path):
    write_journal(path, *(event(seq) for seq in range(1, 5001)))
    with pytest.raises(JournalError, match="took longer than 0 s: narrow it"):
        list(Reader(path, time_limit=0).events(process=("nobody*",)))


@pytest.mark.parametrize("line", ['{"seq": 2, "ti', "[]", ""])
def test_a_line_that_is_not_a_json_object_is_an_error(path, line):
    write_journal(path, event(1), event(2))
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE events SET line = ? WHERE seq = 2", (line,))
    lines = Reader(path).events()
    assert json.loads(next(lines))["seq"] == 1
    with pytest.raises(JournalError, match="is damaged: it contains"):
        next(lines)


def test_a_line_that_is_not_an_event_is_an_error(path):
    write_journal(path, event(1))
    with pytest.raises(JournalError, match="is damaged: it contains"):
        Reader(path).event("{}")


def test_while_events_are_written_readers_never_skip_an_event(path):
    results = []
    with open_journal(path) as journal:
        journal.start()
        is_over = threading.Event()

        def read():
            while not is_over.is_set():
                results.append(seqs(path))

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for seq in range(1, 3001):
            journal.write(event(seq))
            if not seq % 100:
                time.sleep(0.02)
        wait_for_seq(journal, 3000)
        is_over.set()
        for reader in readers:
            reader.join()
        assert journal.trouble is None
    assert all(result == list(range(1, len(result) + 1)) for result in results)
    assert len({len(result) for result in results}) > 2
    assert seqs(path) == list(range(1, 3001))


def test_a_query_that_pauses_blocks_neither_writing_nor_trimming(path):
    with open_journal(path, max_bytes=MIN_BYTES) as journal:
        journal.start()
        for seq in range(1, 1001):
            journal.write(event(seq))
        wait_for_seq(journal, 1000)
        lines = Reader(path).events()
        next(lines)
        for seq in range(1001, 15_001):
            journal.write(event(seq))
        wait_for_seq(journal, 15_000)
        assert bytes_of(path) <= MIN_BYTES
        assert json.loads(list(lines)[-1])["seq"] == 15_000


def bytes_of_pages(path):
    """Return the size that the database file will have after its WAL is checkpointed."""
    with closing(sqlite3.connect(path)) as db:
        return db.execute("PRAGMA page_count").fetchone()[0] * PAGE


def test_events_above_the_age_limit_are_deleted_and_their_space_is_freed(path):
    now = time.time_ns()
    write_journal(path, *(event(seq, time=now - 3 * HOUR) for seq in range(1, 5001)))
    before = bytes_of(path)
    with open_journal(path, max_age=2 * 3_600, max_bytes=MIN_BYTES) as journal:
        journal.start()
        journal.write(event(5001, time=now - HOUR))
        wait_until(lambda: seqs(path) == [5001], "the old events to be deleted")
        wait_for_seq(journal, 5001)
        wait_until(lambda: bytes_of_pages(path) < before / 2, "pages to be freed")
    assert bytes_of(path) < before / 2


def test_above_the_size_limit_the_oldest_events_are_deleted(path):
    sizes = []
    with open_journal(path, max_bytes=MIN_BYTES) as journal:
        journal.start()
        for last in range(3_000, 30_001, 3_000):
            for seq in range(last - 2_999, last + 1):
                journal.write(event(seq))
            wait_until(
                lambda last=last: sizes.append(bytes_of(path)) or journal.last_seq == last,
                "the events to be durable",
            )
        assert journal.lost == 0
    kept = seqs(path)
    assert kept == list(range(kept[0], 30_001))
    assert len(kept) > 5000
    assert max(sizes) <= MIN_BYTES


def test_a_journal_shrinks_when_it_is_opened_with_a_smaller_size_limit(path):
    write_journal(path, *(event(seq) for seq in range(1, 25_001)))
    before = bytes_of(path)
    assert before > MIN_BYTES
    with open_journal(path, max_bytes=MIN_BYTES) as journal:
        journal.start()
        journal.write(event(25_001))
        wait_until(lambda: bytes_of(path) <= MIN_BYTES, "the file to shrink")
    kept = seqs(path)
    assert kept == list(range(kept[0], 25_002))
    assert len(kept) > 5000


def test_events_queued_before_the_thread_starts_are_written_after_it_has_started(path):
    with open_journal(path) as journal:
        for seq in range(1, 101):
            journal.write(event(seq))
        assert journal.last_seq is None
        journal.start()
        wait_for_seq(journal, 100)


def test_if_too_many_events_are_pending_further_events_are_counted_as_lost(path, monkeypatch):
    monkeypatch.setattr("portwatch.outputs.journal.writer.CAPACITY", 10)
    with open_journal(path) as journal:
        for seq in range(1, 14):
            journal.write(event(seq))
        assert journal.lost == 3
        journal.start()
    assert seqs(path) == list(range(1, 11))


def test_events_after_close_are_counted_as_lost(path):
    with open_journal(path) as journal:
        journal.start()
    journal.write(event(1))
    assert journal.lost == 1


def test_if_the_thread_never_starts_events_are_counted_as_lost(path):
    with open_journal(path) as journal:
        journal.write(event(1))
    assert journal.lost == 1
