"""Where processes come from, of real ones."""

import os
import subprocess
import sys

import pytest

from portwatch.linux import procfs
from portwatch.linux.ancestry import Ancestor, details_of
from portwatch.linux.procfs import read, stat
from portwatch.model import Process

WORDS = ["-c", "import sys; sys.stdin.read()", "two words", "", "\x1b[31m", "\udcff"]


@pytest.fixture
def child():
    made = subprocess.Popen([sys.executable, *WORDS], stdin=subprocess.PIPE)
    yield made
    made.communicate()


def process(pid, start_time=None):
    return Process(pid, start_time or stat(pid)[2], "x", 0)


def test_a_command_is_the_words_that_were_given(child):
    assert details_of(process(child.pid)).command == (sys.executable, *WORDS[:-1], "\\xff")


def test_the_line_of_descent_begins_with_pid_1_and_ends_with_the_process(child):
    line = details_of(process(child.pid)).ancestry
    assert line[0].pid == 1
    assert [one.pid for one in line[-2:]] == [os.getpid(), child.pid]
    assert line[-2] == Ancestor(os.getpid(), stat(os.getpid())[0].decode())


def test_of_a_later_process_of_the_same_pid_nothing_is_told(child):
    known = details_of(process(child.pid, start_time=1))
    assert (known.command, known.ancestry) == (None, ())


def test_of_a_process_that_has_ended_nothing_is_told(child):
    ended = process(child.pid)
    child.communicate()
    assert details_of(ended).as_dict() == {"command": None, "ancestry": []}


def test_a_parent_that_is_younger_than_its_child_is_another_process(child, monkeypatch):
    known = process(child.pid)
    late = known.start_time + 1
    monkeypatch.setattr(procfs, "stat", lambda pid: stat(pid) if pid == child.pid else (b"reused", 1, late))
    assert [one.pid for one in details_of(known).ancestry] == [child.pid]


@pytest.mark.parametrize(
    ("content", "command"),
    [
        (b"nginx: master process /usr/sbin/nginx\0\0  \0", ("nginx: master process /usr/sbin/nginx",)),
        (b"", ()),
    ],
    ids=["a title of its own", "a thread of the kernel's"],
)
def test_a_command_is_what_the_process_shows(monkeypatch, content, command):
    monkeypatch.setattr(procfs, "read", lambda pid, name: content if name == "cmdline" else read(pid, name))
    assert details_of(process(os.getpid())).command == command
