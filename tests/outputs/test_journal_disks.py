"""The journal on full, read-only and hanging disks: writing is delayed, and the reason is reported."""

import contextlib
import os
import shutil
import subprocess

import pytest
from journals import CENTURY, event, open_journal, seqs, wait_for_seq, write_journal
from support import PATIENCE, wait_until

from portwatch.errors import JournalError
from portwatch.outputs.journal import Journal, writer
from portwatch.outputs.journal.writer import CAPACITY, MIN_BYTES

DISK_FULL = "the disk is full"


def mount(*options):
    """Mount a file system, or skip the test if that is not possible here."""
    result = subprocess.run(
        ["mount", *map(str, options)], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    if result.returncode:
        pytest.skip(f"cannot mount a file system here: {result.stderr.strip()}")


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system, which needs root")


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", "size=80m,nr_inodes=64", "none", disk)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True, timeout=PATIENCE)


def fill(disk):
    """Fill a disk to the last byte with one file, and return that file."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    pass
    return filler


@needs_root
def test_on_a_full_disk_events_wait_for_space_and_those_above_capacity_are_lost(small_disk):
    path = small_disk / "journal.db"
    total = CAPACITY + 5_000
    with open_journal(path) as journal:
        journal.start()
        journal.write(event(1))
        wait_for_seq(journal, 1)
        filler = fill(small_disk)
        for seq in range(2, 2_001):
            journal.write(event(seq))
        wait_until(lambda: journal.trouble == DISK_FULL, "the journal to report trouble")
        for seq in range(2_001, total + 1):
            journal.write(event(seq))
        lost = journal.lost
        durable = journal.last_seq
        assert total - durable - CAPACITY - 500 <= lost <= total - durable - CAPACITY
        assert seqs(path) == list(range(1, durable + 1))
        filler.unlink()
        wait_for_seq(journal, total - lost)
        wait_until(lambda: journal.trouble is None, "the journal to report no more trouble")
        journal.write(event(total + 1))
        wait_for_seq(journal, total + 1)
        assert journal.lost == lost
    assert seqs(path) == [*range(1, total - lost + 1), total + 1]


@needs_root
@pytest.mark.parametrize("exists", [True, False], ids=["existing journal", "new journal"])
def test_if_the_disk_is_full_at_the_start_events_wait_for_space(small_disk, exists):
    path = small_disk / "journal.db"
    if exists:
        write_journal(path, event(1))
    filler = fill(small_disk)
    with open_journal(path) as journal:
        assert journal.trouble == DISK_FULL
        journal.start()
        journal.write(event(2))
        filler.unlink()
        wait_for_seq(journal, 2)
        assert journal.trouble is None
    assert seqs(path) == ([1, 2] if exists else [2])
    assert {file.name for file in small_disk.iterdir()} == {path.name, path.name + "-lock"}


@needs_root
def test_if_the_disk_has_no_free_inodes_events_wait_for_a_free_inode(small_disk):
    path = small_disk / "journal.db"
    with contextlib.suppress(OSError):
        for number in range(1_000):
            (small_disk / str(number)).touch()
    with open_journal(path) as journal:
        assert journal.trouble == "No space left on device"
        journal.start()
        journal.write(event(1))
        for number in range(20):
            (small_disk / str(number)).unlink()
        wait_for_seq(journal, 1)
    assert seqs(path) == [1]


@needs_root
def test_if_the_disk_is_full_at_close_unwritten_events_are_counted_as_lost(small_disk):
    path = small_disk / "journal.db"
    with open_journal(path) as journal:
        journal.start()
        fill(small_disk)
        for seq in range(1, 2_001):
            journal.write(event(seq))
        wait_until(lambda: journal.trouble == DISK_FULL, "the journal to report trouble")
    assert journal.lost == 2_000 - (journal.last_seq or 0)
    assert seqs(path) == list(range(1, (journal.last_seq or 0) + 1))


@needs_root
def test_on_a_read_only_disk_a_journal_can_be_read_but_not_written(small_disk):
    path = small_disk / "journal.db"
    write_journal(path, event(1))
    mount("-o", "remount,ro", small_disk)
    assert seqs(path) == [1]
    for file in (path, small_disk / "new.db"):
        with pytest.raises(JournalError, match=r"Read-only file system|is not writable"):
            open_journal(file)


@pytest.fixture
def freezable(tmp_path):
    """A file system whose writes block from `freeze` to `thaw`."""
    image, disk = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    if not all(map(shutil.which, ("mkfs.ext4", "fsfreeze"))):
        pytest.skip("needs mkfs.ext4 and fsfreeze")
    subprocess.run(["mkfs.ext4", "-q", image], check=True, timeout=PATIENCE)
    disk.mkdir()
    mount("-o", "loop", image, disk)
    is_frozen = []

    class Disk:
        path = disk / "journal.db"

        def freeze(self):
            subprocess.run(["fsfreeze", "--freeze", disk], check=True, timeout=PATIENCE)
            is_frozen.append(True)

        def thaw(self):
            subprocess.run(["fsfreeze", "--unfreeze", disk], check=True, timeout=PATIENCE)
            is_frozen.clear()

    instance = Disk()
    yield instance
    if is_frozen:
        instance.thaw()
    subprocess.run(["umount", "--lazy", disk], check=True, timeout=PATIENCE)


@needs_root
def test_a_hanging_disk_is_reported_and_does_not_block_write(freezable, monkeypatch):
    monkeypatch.setattr(writer, "_HANGING", 0.1)
    with open_journal(freezable.path) as journal:
        journal.start()
        journal.write(event(1))
        wait_for_seq(journal, 1)
        freezable.freeze()
        journal.write(event(2))
        wait_until(
            lambda: (journal.trouble or "").startswith("the disk has not answered for"),
            "the journal to report trouble",
        )
        journal.write(event(3))
        freezable.thaw()
        wait_for_seq(journal, 3)
        assert journal.trouble is None
        assert journal.lost == 0


@needs_root
def test_close_does_not_wait_for_a_hanging_disk(freezable):
    journal = Journal(freezable.path, max_age=CENTURY, max_bytes=MIN_BYTES)
    journal.start()
    freezable.freeze()
    journal.write(event(1))
    wait_until(lambda: journal._busy_since, "the thread to write")
    journal.close()  # must return although the disk is frozen
    assert journal.lost == 1
    freezable.thaw()
    journal._thread.join(PATIENCE)
    journal.close()
