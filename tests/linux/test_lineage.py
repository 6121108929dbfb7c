"""Membership in process trees, read from /proc, and the roots of trees."""

import os
import subprocess
import threading

import pytest
from processes import end, identity, process, sleeping
from support import wait_until

from portwatch.errors import PortwatchError
from portwatch.linux import procfs
from portwatch.linux.lineage import Identity, Lineage, root_at
from portwatch.linux.procfs import stat


def test_forget_ended_drops_members_that_have_ended_and_keeps_all_others(family):
    child, grandchild = family
    lineage = Lineage()
    lineage.watch(identity(child.pid), 1)
    for _ in range(20):
        with sleeping() as member:
            lineage._members[identity(member.pid)] = 1
    end(child)
    lineage.forget_ended()
    assert lineage._members == {identity(grandchild): 1}


def test_a_child_that_starts_after_watch_is_a_member():
    lineage = Lineage()
    lineage.watch(identity(os.getpid()), 1)
    with sleeping() as started:
        assert lineage.of(process(started.pid)) == 1


def test_a_member_stays_a_member_after_its_parent_has_ended(family):
    child, grandchild = family
    lineage = Lineage()
    lineage.watch(identity(child.pid), 1)
    end(child)
    assert stat(grandchild)[1] != child.pid, "the kernel must have given the grandchild another parent"
    assert lineage.of(process(grandchild)) == 1


def test_a_process_is_not_a_member_through_a_parent_that_is_younger_than_itself(family, monkeypatch):
    child, grandchild = family
    reused = Identity(child.pid, identity(grandchild).start_time + 10_000_000)
    monkeypatch.setattr(
        procfs, "stat", lambda pid: (b"x", 1, reused.start_time) if pid == child.pid else stat(pid)
    )
    lineage = Lineage()
    lineage._members[reused] = 1
    assert lineage.of(process(child.pid, reused.start_time)) == 1
    assert lineage.of(process(grandchild)) == 0


def test_root_at_refuses_a_pid_without_a_process():
    ended = subprocess.Popen(["true"])
    ended.wait()
    with pytest.raises(PortwatchError, match=f"no process {ended.pid}"):
        root_at(ended.pid)


def test_root_at_refuses_a_thread_and_names_its_process():
    tids = []
    done = threading.Event()
    thread = threading.Thread(target=lambda: (tids.append(threading.get_native_id()), done.wait()))
    thread.start()
    wait_until(lambda: tids, "the thread to start")
    with pytest.raises(PortwatchError, match=f"{tids[0]} is a thread of process {os.getpid()}"):
        root_at(tids[0])
    done.set()
    thread.join()
