"""Kills, full and hanging disks, damaged and foreign files: the journal goes on, or says why not."""

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
from journals import A_CENTURY, event, opened, seqs, written
from support import PATIENCE, ROOT, wait_until

from portwatch.errors import JournalError
from portwatch.outputs.journal import Journal, Reader, writer
from portwatch.outputs.journal.store import Store
from portwatch.outputs.journal.writer import CAPACITY, MIN_BYTES

ROUNDS = 15
THE_DISK_IS_FULL = "the disk is full"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.db"


WRITER = f"""
import sys, time
sys.path.insert(0, {str(ROOT / "tests")!r})
from pathlib import Path
from journals import event, opened
from portwatch.outputs.journal.writer import MIN_BYTES

with opened(Path(sys.argv[1]), max_bytes=MIN_BYTES) as journal:
    seq = told = journal.last_seq or 0
    print(seq, flush=True)
    journal.start()
    while True:
        for _ in range(40):
            seq += 1
            journal.write(event(seq))
        time.sleep(0.005)
        if journal.last_seq and journal.last_seq > told:
            told = journal.last_seq
            print(told, flush=True)
"""


@contextlib.contextmanager
def writing(path):
    """A process that writes to a journal as fast as it can, and tells what is durable."""
    with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_journal_whose_writer_is_killed_has_all_that_was_durable_and_goes_on(path):
    random.seed(7)
    durable = 0
    for _ in range(ROUNDS):
        with writing(path) as process:
            assert int(process.stdout.readline()) >= durable
            select.select([], [], [], random.uniform(0, 0.8))
            process.kill()
            told = process.stdout.read().split()
        with opened(path, max_bytes=MIN_BYTES) as journal:
            durable = max([durable, *map(int, told)])
            assert journal.last_seq >= durable
            kept = seqs(path)
            assert kept == list(range(kept[0], journal.last_seq + 1))
            durable = journal.last_seq
    assert durable > MIN_BYTES / 1000, "too little was written for anything to be deleted or checkpointed"
    assert {one.name for one in path.parent.iterdir()} == {path.name, path.name + "-lock"}


def test_another_process_reads_while_one_writes(path):
    with writing(path) as process:
        process.stdout.readline()
        told = int(process.stdout.readline())
        kept = seqs(path)
        assert kept == list(range(1, len(kept) + 1))
        assert len(kept) >= told


def test_a_wal_that_is_cut_short_loses_no_more_than_its_end(path, tmp_path):
    with writing(path) as process:
        for _ in range(3):
            durable = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
    wal = Path(f"{path}-wal").read_bytes()
    found = []
    for length in [*sorted(random.Random(7).sample(range(len(wal)), 20)), len(wal)]:
        copy = tmp_path / str(length)
        shutil.copy(path, copy)
        Path(f"{copy}-wal").write_bytes(wal[:length])
        with opened(copy) as journal:
            assert journal.trouble is None
            found.append(journal.last_seq or 0)
            assert seqs(copy) == list(range(1, found[-1] + 1))
    assert found == sorted(found)
    assert found[0] < durable <= found[-1]


def test_a_journal_that_is_cut_short_is_set_aside_and_a_new_one_begun(path, tmp_path, caplog):
    written(path, *(event(seq) for seq in range(1, 2001)))
    whole = path.read_bytes()
    pages = [*range(4096, len(whole), 20 * 4096), len(whole) - 4096]
    for length in [72, 80, 100, 101, 511, 512, 4000, 4095, *pages, 4097, len(whole) // 2 + 1]:
        caplog.clear()
        folder = tmp_path / str(length)
        folder.mkdir()
        cut = folder / "journal.db"
        cut.write_bytes(whole[:length])
        with opened(cut) as journal:
            journal.start()
            journal.write(event(3000))
        assert seqs(cut) == [3000]
        (broken,) = folder.glob("journal.db.broken-*")
        assert broken.read_bytes() == whole[:length]
        assert f"is damaged (database disk image is malformed): it is now {broken}" in caplog.text


def test_a_damaged_journal_tells_its_last_seq_if_that_can_be_read(path):
    written(path, *(event(seq) for seq in range(1, 2001)))
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript("CREATE TABLE last (x); INSERT INTO last VALUES (zeroblob(20 * 4096))")
    os.truncate(path, path.stat().st_size - 4096)
    with opened(path) as journal:
        assert journal.last_seq == 2000
    assert seqs(path) == []


def test_damage_that_is_met_while_it_runs_costs_no_new_event(path):
    written(path, *(event(seq, time=1) for seq in range(1, 5001)))
    with path.open("r+b") as file:
        file.seek(10 * 4096)
        file.write(b"\xff" * 4096 * 200)
    with opened(path, max_age=3_600) as journal:
        assert journal.last_seq == 5000
        journal.start()
        journal.write(event(5001))
        wait_until(lambda: journal.last_seq == 5001, "the new event on disk")
        assert journal.trouble is None
    assert seqs(path) == [5001]
    (broken,) = path.parent.glob("journal.db.broken-*")
    assert b"\xff" * 4096 in broken.read_bytes()


def test_damage_that_is_met_while_it_is_read_is_said(path):
    written(path, *(event(seq) for seq in range(1, 5001)))
    with path.open("r+b") as file:
        file.seek(10 * 4096)
        file.write(b"\xff" * 4096 * 200)
    with pytest.raises(JournalError, match="cannot be read: database disk image is malformed; `sqlite3"):
        seqs(path)


def test_a_wal_without_its_journal_is_set_aside(path):
    with writing(path) as process:
        process.stdout.readline()
        process.stdout.readline()
    path.unlink()
    with opened(path) as journal:
        journal.start()
        journal.write(event(1))
    assert seqs(path) == [1]
    assert len(list(path.parent.glob("journal.db.broken-*-wal"))) == 1


def test_an_empty_file_becomes_a_journal(path):
    path.touch()
    written(path, event(1))
    assert seqs(path) == [1]
    assert path.stat().st_mode & 0o777 == 0o600
    assert {one.name for one in path.parent.iterdir()} == {path.name, path.name + "-lock"}


def test_what_a_killed_start_left_is_no_obstacle(path):
    for end in ("-new", "-new-wal", "-new-journal"):
        Path(f"{path}{end}").write_bytes(b"half of it")
    written(path, event(1))
    assert seqs(path) == [1]
    assert not list(path.parent.glob("*-new*"))


def text(path):
    path.write_bytes(b"port 8080 was opened by nginx\n" * 200)


def one_byte(path):
    path.write_bytes(b"x")


def head_of_a_journal(path):
    written(path, event(1))
    content = path.read_bytes()
    path.write_bytes(content[:60])
    Path(f"{path}-lock").unlink()


def database(path):
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(
            "CREATE TABLE events (seq INTEGER PRIMARY KEY, line); INSERT INTO events VALUES (1, 'a')"
        )


def database_in_use(path):
    """With a WAL that nobody has put into the database yet."""
    made = path.with_name("made")
    with contextlib.closing(sqlite3.connect(made)) as db:
        db.executescript("PRAGMA journal_mode = WAL; CREATE TABLE t (x); INSERT INTO t VALUES (1)")
        for end in ("", "-wal", "-shm"):
            shutil.copy(f"{made}{end}", f"{path}{end}")


@pytest.mark.parametrize("make", [text, one_byte, head_of_a_journal, database, database_in_use])
def test_what_is_not_ours_is_refused_and_left_as_it_is(path, make):
    make(path)
    before = {one: one.read_bytes() for one in path.parent.iterdir()}
    for open_it in (opened, Reader):
        with pytest.raises(JournalError, match="is not a journal of portwatch's, and was left as it is: name"):
            open_it(path)
    assert {one: one.read_bytes() for one in path.parent.iterdir()} == before


def test_another_version_is_refused_and_left_as_it_is(path):
    written(path, event(1))
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 7")
    before = path.read_bytes()
    for open_it in (opened, Reader):
        with pytest.raises(JournalError, match="is of version 7, and this portwatch knows version 1: use"):
            open_it(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("nosuch/journal.db", "has no folder: create .*/nosuch"),
        ("folder", "is no file"),
        ("file/journal.db", "cannot be written: Not a directory"),
    ],
)
def test_a_place_where_no_journal_can_be_is_refused(tmp_path, where, said):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match=said):
        opened(tmp_path / where)


def test_a_reader_of_nothing_says_so(path):
    with pytest.raises(JournalError, match="cannot be opened: No such file"):
        Reader(path)


def test_a_journal_that_is_too_small_for_anything_is_refused(path):
    with pytest.raises(JournalError, match="1,000 bytes holds too little: give it 8,388,608 or more"):
        opened(path, max_bytes=1000)


def test_a_second_writer_is_refused_here_and_elsewhere_and_the_first_goes_on(path):
    with writing(path) as process:
        process.stdout.readline()
        with pytest.raises(JournalError, match="another portwatch writes the journal"):
            opened(path)
        told = int(process.stdout.readline())
        assert int(process.stdout.readline()) > told
    with opened(path), pytest.raises(JournalError, match="another portwatch writes the journal"):
        opened(path)
    with opened(path):
        pass


def test_a_link_to_a_journal_is_the_same_journal(path, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(path)
    written(link, event(1))
    assert seqs(path) == seqs(link) == [1]
    assert link.is_symlink()
    with opened(path), pytest.raises(JournalError, match="another portwatch writes"):
        opened(link)


def test_a_journal_that_is_deleted_while_it_runs_is_begun_again(path):
    with opened(path) as journal:
        journal.start()
        journal.write(event(1))
        wait_until(lambda: journal.last_seq == 1, "the first event on disk")
        for one in path.parent.iterdir():
            one.unlink()
        journal.write(event(2))
        wait_until(lambda: journal.last_seq == 2, "the second event on disk")
        assert seqs(path) == [2]
        with pytest.raises(JournalError, match="another portwatch writes"):
            opened(path)


def test_a_program_that_locks_the_journal_delays_it_only_as_long_as_it_does(path):
    with opened(path) as journal:
        journal.start()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            journal.write(event(1))
            wait_until(lambda: journal.trouble == "database is locked", "trouble")
            journal.write(event(2))
        wait_until(lambda: journal.last_seq == 2, "both on disk")
        assert journal.trouble is None
    assert seqs(path) == [1, 2]


def test_a_program_that_reads_without_end_is_named_before_the_disk_is_full(path):
    with opened(path, max_bytes=MIN_BYTES) as journal:
        journal.start()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("BEGIN")
            db.execute("SELECT count(*) FROM events").fetchone()
            for last in range(2_500, CAPACITY, 2_500):
                for seq in range(last - 2_499, last + 1):
                    journal.write(event(seq))
                wait_until(
                    lambda last=last: journal.trouble or journal.last_seq == last, "them on disk, or trouble"
                )
                if journal.trouble:
                    break
            assert journal.trouble == "a program that has read it for long keeps it from shrinking"
        wait_until(lambda: journal.trouble is None, "it to go on")
        wait_until(lambda: bytes_of(path) <= MIN_BYTES, "it to shrink")


def bytes_of(path):
    return sum(one.stat().st_size for one in path.parent.glob("journal.db*"))


def mount(*options):
    """A file system of our own, until `unmount`; skips where there can be none."""
    done = subprocess.run(
        ["mount", *map(str, options)], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    if done.returncode:
        pytest.skip(f"about a disk of its own, which cannot be mounted here: {done.stderr.strip()}")


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a disk of its own, which only root can")


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", "size=80m,nr_inodes=64", "none", disk)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True, timeout=PATIENCE)


def fill(disk):
    """Leaves no byte free; the file that took them."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    pass
    return filler


@needs_root
def test_a_full_disk_is_said_loses_only_what_cannot_wait_and_is_over_when_it_is_over(small_disk):
    path = small_disk / "journal.db"
    total = CAPACITY + 5_000
    with opened(path) as journal:
        journal.start()
        journal.write(event(1))
        wait_until(lambda: journal.last_seq == 1, "the first event on disk")
        filler = fill(small_disk)
        for seq in range(2, 2_001):
            journal.write(event(seq))
        wait_until(lambda: journal.trouble == THE_DISK_IS_FULL, "trouble")
        for seq in range(2_001, total + 1):
            journal.write(event(seq))
        lost = journal.lost
        durable = journal.last_seq
        assert total - durable - CAPACITY - 500 <= lost <= total - durable - CAPACITY
        assert seqs(path) == list(range(1, durable + 1))
        filler.unlink()
        wait_until(lambda: journal.last_seq == total - lost, "all that waited on disk")
        wait_until(lambda: journal.trouble is None, "no trouble")
        journal.write(event(total + 1))
        wait_until(lambda: journal.last_seq == total + 1, "what comes next on disk")
        assert journal.lost == lost
    assert seqs(path) == [*range(1, total - lost + 1), total + 1]


@needs_root
@pytest.mark.parametrize("is_begun", [True, False], ids=["of a journal", "without one"])
def test_a_disk_that_is_full_from_the_start_is_trouble_and_no_obstacle(small_disk, is_begun):
    path = small_disk / "journal.db"
    if is_begun:
        written(path, event(1))
    filler = fill(small_disk)
    with opened(path) as journal:
        assert journal.trouble == THE_DISK_IS_FULL
        journal.start()
        journal.write(event(2))
        filler.unlink()
        wait_until(lambda: journal.last_seq == 2, "the event on disk")
        assert journal.trouble is None
    assert seqs(path) == ([1, 2] if is_begun else [2])
    assert {one.name for one in small_disk.iterdir()} == {path.name, path.name + "-lock"}


@needs_root
def test_a_disk_with_space_and_no_room_for_another_file_is_trouble_and_no_obstacle(small_disk):
    path = small_disk / "journal.db"
    with contextlib.suppress(OSError):
        for number in range(1_000):
            (small_disk / str(number)).touch()
    with opened(path) as journal:
        assert journal.trouble == "No space left on device"
        journal.start()
        journal.write(event(1))
        for number in range(20):
            (small_disk / str(number)).unlink()
        wait_until(lambda: journal.last_seq == 1, "the event on disk")
    assert seqs(path) == [1]


@needs_root
def test_closing_on_a_full_disk_counts_what_it_leaves(small_disk):
    path = small_disk / "journal.db"
    with opened(path) as journal:
        journal.start()
        fill(small_disk)
        for seq in range(1, 2_001):
            journal.write(event(seq))
        wait_until(lambda: journal.trouble == THE_DISK_IS_FULL, "trouble")
    assert journal.lost == 2_000 - (journal.last_seq or 0)
    assert seqs(path) == list(range(1, (journal.last_seq or 0) + 1))


@needs_root
def test_on_a_disk_that_is_read_only_a_journal_is_read_and_not_written(small_disk):
    path = small_disk / "journal.db"
    written(path, event(1))
    mount("-o", "remount,ro", small_disk)
    assert seqs(path) == [1]
    for where in (path, small_disk / "new.db"):
        with pytest.raises(JournalError, match=r"Read-only file system|not ours to write"):
            opened(where)


@pytest.fixture
def frozen(tmp_path):
    """A disk that does not answer from `freeze` to `thaw`."""
    image, disk = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    if not all(map(shutil.which, ("mkfs.ext4", "fsfreeze"))):
        pytest.skip("about a disk that hangs, which needs mkfs.ext4 and fsfreeze")
    subprocess.run(["mkfs.ext4", "-q", image], check=True, timeout=PATIENCE)
    disk.mkdir()
    mount("-o", "loop", image, disk)
    frozen = []

    class Disk:
        path = disk / "journal.db"

        def freeze(self):
            subprocess.run(["fsfreeze", "--freeze", disk], check=True, timeout=PATIENCE)
            frozen.append(True)

        def thaw(self):
            subprocess.run(["fsfreeze", "--unfreeze", disk], check=True, timeout=PATIENCE)
            frozen.clear()

    made = Disk()
    yield made
    if frozen:
        made.thaw()
    subprocess.run(["umount", "--lazy", disk], check=True, timeout=PATIENCE)


@needs_root
def test_a_disk_that_hangs_is_said_and_holds_nobody_up(frozen, monkeypatch):
    monkeypatch.setattr(writer, "_HANGING", 0.1)
    with opened(frozen.path) as journal:
        journal.start()
        journal.write(event(1))
        wait_until(lambda: journal.last_seq == 1, "the first event on disk")
        frozen.freeze()
        journal.write(event(2))
        wait_until(lambda: (journal.trouble or "").startswith("the disk has not answered for"), "trouble")
        journal.write(event(3))
        frozen.thaw()
        wait_until(lambda: journal.last_seq == 3, "all on disk")
        assert journal.trouble is None
        assert journal.lost == 0


@needs_root
def test_closing_does_not_wait_for_a_disk_that_hangs(frozen):
    journal = Journal(frozen.path, max_age=A_CENTURY, max_bytes=MIN_BYTES)
    journal.start()
    frozen.freeze()
    journal.write(event(1))
    wait_until(lambda: journal._busy_since, "the writer at the disk")
    journal.close()  # the disk is frozen all this time
    assert journal.lost == 1
    frozen.thaw()
    journal._thread.join(PATIENCE)
    journal.close()


def test_an_error_that_nobody_thought_of_is_trouble_and_stops_nothing(path, monkeypatch):
    broken = threading.Event()
    broken.set()
    trim = Store._trim

    def fail(store):
        if broken.is_set():
            raise RuntimeError("nobody thought of this")
        return trim(store)

    monkeypatch.setattr(Store, "_trim", fail)
    with opened(path) as journal:
        journal.start()
        journal.write(event(1))
        wait_until(lambda: journal.trouble == "nobody thought of this", "trouble")
        assert seqs(path) == []
        broken.clear()
        wait_until(lambda: journal.last_seq == 1, "the event on disk")
        assert journal.trouble is None
    assert seqs(path) == [1]
