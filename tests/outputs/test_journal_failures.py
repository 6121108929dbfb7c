"""The journal after kills and damage, with foreign files, and with other writers and readers."""

import contextlib
import os
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from journals import bytes_of, event, open_journal, seqs, wait_for_seq, write_journal
from support import PATIENCE, ROOT, wait_until

from portwatch.errors import JournalError
from portwatch.outputs.journal import Reader
from portwatch.outputs.journal.store import Store
from portwatch.outputs.journal.writer import CAPACITY, MIN_BYTES

ROUNDS = 15


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.db"


WRITER = f"""
import sys, time
sys.path.insert(0, {str(ROOT / "tests")!r})
from pathlib import Path
from journals import event, open_journal
from portwatch.outputs.journal.writer import MIN_BYTES

with open_journal(Path(sys.argv[1]), max_bytes=MIN_BYTES) as journal:
    seq = reported = journal.last_seq or 0
    print(seq, flush=True)
    journal.start()
    while True:
        for _ in range(40):
            seq += 1
            journal.write(event(seq))
        time.sleep(0.005)
        if journal.last_seq and journal.last_seq > reported:
            reported = journal.last_seq
            print(reported, flush=True)
"""


@contextlib.contextmanager
def writing(path):
    """Start a process that writes to a journal. It prints the newest durable seq whenever that has changed."""
    with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def test_after_a_kill_the_journal_has_every_durable_event_and_can_be_continued(path):
    random.seed(7)
    durable = 0
    for _ in range(ROUNDS):
        with writing(path) as process:
            assert int(process.stdout.readline()) >= durable
            select.select([], [], [], random.uniform(0, 0.8))
            process.kill()
            reported = process.stdout.read().split()
        with open_journal(path, max_bytes=MIN_BYTES) as journal:
            durable = max([durable, *map(int, reported)])
            assert journal.last_seq >= durable
            kept = seqs(path)
            assert kept == list(range(kept[0], journal.last_seq + 1))
            durable = journal.last_seq
    assert durable > MIN_BYTES / 1000, "too few events were written to cause trims and checkpoints"
    assert {file.name for file in path.parent.iterdir()} == {path.name, path.name + "-lock"}


def test_a_journal_can_be_read_while_another_process_writes_to_it(path):
    with writing(path) as process:
        process.stdout.readline()
        durable = int(process.stdout.readline())
        kept = seqs(path)
        assert kept == list(range(1, len(kept) + 1))
        assert len(kept) >= durable


def test_if_the_wal_is_truncated_only_the_events_at_its_end_are_lost(path, tmp_path):
    with writing(path) as process:
        for _ in range(3):
            durable = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
    wal = Path(f"{path}-wal").read_bytes()
    last_seqs = []
    for length in [*sorted(random.Random(7).sample(range(len(wal)), 20)), len(wal)]:
        copy = tmp_path / str(length)
        shutil.copy(path, copy)
        Path(f"{copy}-wal").write_bytes(wal[:length])
        with open_journal(copy) as journal:
            assert journal.trouble is None
            last_seqs.append(journal.last_seq or 0)
            assert seqs(copy) == list(range(1, last_seqs[-1] + 1))
    assert last_seqs == sorted(last_seqs)
    assert last_seqs[0] < durable <= last_seqs[-1]


def test_a_truncated_journal_is_renamed_and_a_new_one_is_started(path, tmp_path, caplog):
    write_journal(path, *(event(seq) for seq in range(1, 2001)))
    whole = path.read_bytes()
    pages = [*range(4096, len(whole), 20 * 4096), len(whole) - 4096]
    for length in [72, 80, 100, 101, 511, 512, 4000, 4095, *pages, 4097, len(whole) // 2 + 1]:
        caplog.clear()
        directory = tmp_path / str(length)
        directory.mkdir()
        cut = directory / "journal.db"
        cut.write_bytes(whole[:length])
        with open_journal(cut) as journal:
            journal.start()
            journal.write(event(3000))
        assert seqs(cut) == [3000]
        (broken,) = directory.glob("journal.db.broken-*")
        assert broken.read_bytes() == whole[:length]
        assert f"is damaged (database disk image is malformed): it was renamed to {broken}" in caplog.text


def test_seqs_continue_after_a_damaged_journal_whose_last_seq_can_be_read(path):
    write_journal(path, *(event(seq) for seq in range(1, 2001)))
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript("CREATE TABLE last (x); INSERT INTO last VALUES (zeroblob(20 * 4096))")
    os.truncate(path, path.stat().st_size - 4096)
    with open_journal(path) as journal:
        assert journal.last_seq == 2000
    assert seqs(path) == []


def test_if_damage_is_found_while_writing_no_new_event_is_lost(path):
    write_journal(path, *(event(seq, time=1) for seq in range(1, 5001)))
    with path.open("r+b") as file:
        file.seek(10 * 4096)
        file.write(b"\xff" * 4096 * 200)
    with open_journal(path, max_age=3_600) as journal:
        assert journal.last_seq == 5000
        journal.start()
        journal.write(event(5001))
        wait_for_seq(journal, 5001)
        assert journal.trouble is None
    assert seqs(path) == [5001]
    (broken,) = path.parent.glob("journal.db.broken-*")
    assert b"\xff" * 4096 in broken.read_bytes()


def test_if_damage_is_found_while_reading_the_query_raises_an_error(path):
    write_journal(path, *(event(seq) for seq in range(1, 5001)))
    with path.open("r+b") as file:
        file.seek(10 * 4096)
        file.write(b"\xff" * 4096 * 200)
    with pytest.raises(JournalError, match="cannot be read: database disk image is malformed; `sqlite3"):
        seqs(path)


def test_a_wal_without_a_database_is_renamed(path):
    with writing(path) as process:
        process.stdout.readline()
        process.stdout.readline()
    path.unlink()
    with open_journal(path) as journal:
        journal.start()
        journal.write(event(1))
    assert seqs(path) == [1]
    assert len(list(path.parent.glob("journal.db.broken-*-wal"))) == 1


def test_an_empty_file_becomes_a_journal(path):
    path.touch()
    write_journal(path, event(1))
    assert seqs(path) == [1]
    assert path.stat().st_mode & 0o777 == 0o600
    assert {file.name for file in path.parent.iterdir()} == {path.name, path.name + "-lock"}


def test_files_left_over_from_a_start_that_was_killed_are_removed(path):
    for end in ("-new", "-new-wal", "-new-journal"):
        Path(f"{path}{end}").write_bytes(b"half of it")
    write_journal(path, event(1))
    assert seqs(path) == [1]
    assert not list(path.parent.glob("*-new*"))


def text(path):
    path.write_bytes(b"port 8080 was opened by nginx\n" * 200)


def one_byte(path):
    path.write_bytes(b"x")


def beginning_of_a_journal(path):
    write_journal(path, event(1))
    content = path.read_bytes()
    path.write_bytes(content[:60])
    Path(f"{path}-lock").unlink()


def database(path):
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(
            "CREATE TABLE events (seq INTEGER PRIMARY KEY, line); INSERT INTO events VALUES (1, 'a')"
        )


def database_in_use(path):
    """A database whose WAL is not checkpointed."""
    original = path.with_name("original")
    with contextlib.closing(sqlite3.connect(original)) as db:
        db.executescript("PRAGMA journal_mode = WAL; CREATE TABLE t (x); INSERT INTO t VALUES (1)")
        for end in ("", "-wal", "-shm"):
            shutil.copy(f"{original}{end}", f"{path}{end}")


@pytest.mark.parametrize("make", [text, one_byte, beginning_of_a_journal, database, database_in_use])
def test_a_file_that_is_not_a_journal_is_refused_and_not_changed(path, make):
    make(path)
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    for open_function in (open_journal, Reader):
        with pytest.raises(JournalError, match="is not a portwatch journal and was not changed: choose"):
            open_function(path)
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before


def test_a_journal_of_another_version_is_refused_and_not_changed(path):
    write_journal(path, event(1))
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 7")
    before = path.read_bytes()
    for open_function in (open_journal, Reader):
        with pytest.raises(JournalError, match="has version 7, but this portwatch needs version 1: use"):
            open_function(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nosuch/journal.db", "create the directory .*/nosuch"),
        ("directory", "is not a regular file"),
        ("file/journal.db", "cannot be written: Not a directory"),
    ],
)
def test_a_path_that_cannot_be_a_journal_is_refused(tmp_path, path, message):
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match=message):
        open_journal(tmp_path / path)


def test_a_reader_of_a_missing_journal_raises_an_error(path):
    with pytest.raises(JournalError, match="cannot be opened: No such file"):
        Reader(path)


def test_a_size_limit_that_is_too_small_is_refused(path):
    with pytest.raises(JournalError, match="1,000 bytes is too small: use at least 8,388,608 bytes"):
        open_journal(path, max_bytes=1000)


def test_a_second_writer_is_refused_in_the_same_and_in_another_process(path):
    with writing(path) as process:
        process.stdout.readline()
        with pytest.raises(JournalError, match="another portwatch writes the journal"):
            open_journal(path)
        durable = int(process.stdout.readline())
        assert int(process.stdout.readline()) > durable
    with open_journal(path), pytest.raises(JournalError, match="another portwatch writes the journal"):
        open_journal(path)
    with open_journal(path):
        pass


def test_a_journal_opened_through_a_symlink_is_the_journal_that_the_link_points_to(path, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(path)
    write_journal(link, event(1))
    assert seqs(path) == seqs(link) == [1]
    assert link.is_symlink()
    with open_journal(path), pytest.raises(JournalError, match="another portwatch writes"):
        open_journal(link)


def test_if_a_journal_in_use_is_deleted_a_new_one_is_started(path):
    with open_journal(path) as journal:
        journal.start()
        journal.write(event(1))
        wait_for_seq(journal, 1)
        for file in path.parent.iterdir():
            file.unlink()
        journal.write(event(2))
        wait_for_seq(journal, 2)
        assert seqs(path) == [2]
        with pytest.raises(JournalError, match="another portwatch writes"):
            open_journal(path)


def test_while_another_program_locks_the_database_events_wait_to_be_written(path):
    with open_journal(path) as journal:
        journal.start()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            journal.write(event(1))
            wait_until(lambda: journal.trouble == "database is locked", "the journal to report trouble")
            journal.write(event(2))
        wait_for_seq(journal, 2)
        assert journal.trouble is None
    assert seqs(path) == [1, 2]


def test_a_long_read_transaction_that_makes_the_wal_grow_is_reported(path):
    with open_journal(path, max_bytes=MIN_BYTES) as journal:
        journal.start()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("BEGIN")
            db.execute("SELECT count(*) FROM events").fetchone()
            for last in range(2_500, CAPACITY, 2_500):
                for seq in range(last - 2_499, last + 1):
                    journal.write(event(seq))
                wait_until(
                    lambda last=last: journal.trouble or journal.last_seq == last,
                    "the events to be durable, or trouble",
                )
                if journal.trouble:
                    break
            assert journal.trouble == "another program's long read transaction keeps the WAL from shrinking"
        wait_until(lambda: journal.trouble is None, "writing to succeed again")
        wait_until(lambda: bytes_of(path) <= MIN_BYTES, "the journal to shrink")


def test_after_an_unexpected_error_writing_is_retried(path, monkeypatch):
    must_fail = threading.Event()
    must_fail.set()
    trim = Store._trim

    def fail(store):
        if must_fail.is_set():
            raise RuntimeError("unexpected")
        return trim(store)

    monkeypatch.setattr(Store, "_trim", fail)
    with open_journal(path) as journal:
        journal.start()
        journal.write(event(1))
        wait_until(lambda: journal.trouble == "unexpected", "the journal to report trouble")
        assert seqs(path) == []
        must_fail.clear()
        wait_for_seq(journal, 1)
        assert journal.trouble is None
    assert seqs(path) == [1]
