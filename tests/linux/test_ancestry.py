"""The command lines and the ancestors of real processes."""

import os
import subprocess
import sys

import pytest

from portwatch.linux import procfs
from portwatch.linux.ancestry import Ancestor, details_of
from portwatch.linux.procfs import read, stat
from portwatch.model import Process

ARGUMENTS = ["-c", "import sys; sys.stdin.read()", "two words", "", "\x1b[31m", "\udcff"]


@pytest.fixture
def child():
    process = subprocess.Popen([sys.executable, *ARGUMENTS], stdin=subprocess.PIPE)
    yield process
    process.communicate()


def process_of(pid, start_time=None):
    return Process(pid, start_time or stat(pid)[2], "x", 0)


def test_the_command_has_every_argument_with_invalid_utf_8_escaped(child):
    assert details_of(process_of(child.pid)).command == (sys.executable, *ARGUMENTS[:-1], "\\xff")


def test_the_ancestry_begins_with_pid_1_and_ends_with_the_process(child):
    ancestry = details_of(process_of(child.pid)).ancestry
    assert ancestry[0].pid == 1
    assert [ancestor.pid for ancestor in ancestry[-2:]] == [os.getpid(), child.pid]
    assert ancestry[-2] == Ancestor(os.getpid(), stat(os.getpid())[0].decode())


def test_details_are_empty_if_the_pid_was_reused(child):
    details = details_of(process_of(child.pid, start_time=1))
    assert (details.command, details.ancestry) == (None, ())


def test_details_are_empty_if_the_process_has_ended(child):
    ended = process_of(child.pid)
    child.communicate()
    assert details_of(ended).as_dict() == {"command": None, "ancestry": []}


def test_a_parent_that_is_younger_than_its_child_is_not_in_the_ancestry(child, monkeypatch):
    process = process_of(child.pid)
    later = process.start_time + 1
    monkeypatch.setattr(procfs, "stat", lambda pid: stat(pid) if pid == child.pid else (b"reused", 1, later))
    assert [ancestor.pid for ancestor in details_of(process).ancestry] == [child.pid]


@pytest.mark.parametrize(
    ("content", "command"),
    [
        (b"nginx: master process /usr/sbin/nginx\0\0  \0", ("nginx: master process /usr/sbin/nginx",)),
        (b"", ()),
    ],
    ids=["a process that overwrites its arguments with a title", "a kernel thread"],
)
def test_nuls_and_spaces_at_the_end_of_a_command_are_removed(monkeypatch, content, command):
    monkeypatch.setattr(procfs, "read", lambda pid, name: content if name == "cmdline" else read(pid, name))
    assert details_of(process_of(os.getpid())).command == command
