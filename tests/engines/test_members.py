"""Process trees, of real processes."""

import itertools
import os
import subprocess
import sys
import threading

import pytest
from support import wait_until

from portwatch import PortwatchError
from portwatch.engines import members
from portwatch.engines.members import NO_ROOM, Members
from portwatch.linux import clock, procfs
from portwatch.linux.lineage import Identity, Lineage, root_at
from portwatch.linux.procfs import stat
from portwatch.model import Process
from portwatch.watch.trees import TREES_MAX, TreeBits


class Kept(dict):
    """A map of the kernel's, which lists processes that are gone by the time it is asked for them."""

    def __init__(self):
        self.gone = []
        self.has_room = True

    def put(self, pid, start, trees, *, is_new):
        if is_new != (pid not in self):
            return False
        if is_new and not self.has_room:
            raise PortwatchError(NO_ROOM)
        self[pid] = start, trees
        return True

    def remove(self, pid):
        self.pop(pid, None)

    def pids(self):
        return [*self, *self.gone]


CHILD = "import subprocess, sys; print(subprocess.Popen(['sleep', '600']).pid, flush=True); sys.stdin.read()"


@pytest.fixture
def family():
    """A child of ours, and its child."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    grandchild = int(child.stdout.readline())
    yield child, grandchild
    os.kill(grandchild, 9)
    child.communicate()


def identity(pid):
    return Identity(pid, stat(pid)[2])


def process(pid, start_time=None):
    return Process(pid, start_time or stat(pid)[2], "x", 0)


@pytest.fixture(params=["kernel", "proc"])
def kept(request):
    """Membership in a map of the kernel's, as if no fork had been told of, and as /proc tells it."""
    return Members(Kept()) if request.param == "kernel" else Lineage()


def test_children_and_grandchildren_that_were_there_are_in(kept, family):
    child, grandchild = family
    kept.watch(identity(child.pid), 4)
    assert kept.of(process(child.pid)) == kept.of(process(grandchild)) == 4
    assert kept.of(process(os.getpid())) == 0
    assert kept.of(process(os.getpid()), process(grandchild)) == 4


def test_another_process_of_a_members_pid_is_out(kept, family):
    child, _ = family
    kept.watch(identity(child.pid), 1)
    assert kept.of(process(child.pid, start_time=stat(child.pid)[2] + 10_000_000)) == 0


def test_a_removed_tree_is_out_and_the_others_stay(kept, family):
    child, grandchild = family
    kept.watch(identity(child.pid), 1)
    kept.watch(identity(grandchild), 2)
    assert kept.of(process(grandchild)) == 3
    kept.unwatch(1)
    assert kept.of(process(child.pid)) == 0
    assert kept.of(process(grandchild)) == 2


def test_members_that_end_while_their_tree_is_removed_are_no_matter(family):
    child, grandchild = family
    map_of_kernel = Kept()
    kept = Members(map_of_kernel)
    kept.watch(identity(child.pid), 1)
    map_of_kernel.gone.append(grandchild)
    del map_of_kernel[grandchild]
    kept.unwatch(1)
    assert not map_of_kernel


class Busy(Kept):
    """In which something happens just before somebody is put in."""

    def __init__(self, happens):
        super().__init__()
        self.happens = happens

    def put(self, pid, start, trees, *, is_new):
        happens, self.happens = self.happens, lambda *_: None
        happens(self, pid)
        return super().put(pid, start, trees, is_new=is_new)


def ticks(pid):
    return clock.ticks(stat(pid)[2])


def test_parents_come_in_before_their_children_whom_the_kernel_takes_in_from_then_on(family, monkeypatch):
    child, grandchild = family
    monkeypatch.setattr(procfs, "pids", lambda: [grandchild, child.pid, os.getpid()])
    map_of_kernel = Kept()
    Members(map_of_kernel).watch(identity(os.getpid()), 1)
    assert list(map_of_kernel) == [os.getpid(), child.pid, grandchild]


def test_a_line_is_followed_up_to_a_member_whatever_becomes_of_those_above(family):
    child, grandchild = family
    started = []

    def lose_the_middle(kept, pid):
        kept.happens = lose_the_middle
        if pid == grandchild:
            child.kill()
            child.wait()
            started.append(stat(grandchild)[1] != child.pid)

    map_of_kernel = Busy(lose_the_middle)
    Members(map_of_kernel).watch(identity(os.getpid()), 1)
    assert started == [True]
    assert map_of_kernel[grandchild] == (ticks(grandchild), 1)


def test_what_the_kernel_knows_of_a_newborn_meanwhile_is_kept(family):
    child, _ = family
    pid = child.pid
    map_of_kernel = Busy(lambda kept, _: kept.update({pid: (ticks(pid), 2)}))
    kept = Members(map_of_kernel)
    kept.watch(identity(pid), 1)
    assert kept.of(process(pid)) == 3


class Overwriting(Kept):
    """In which the kernel has worked out a newborn's trees, and puts them in just after us."""

    def put(self, pid, start, trees, *, is_new):
        is_put = super().put(pid, start, trees, is_new=is_new)
        if pid == self.newborn:
            self.newborn, self[pid] = None, (start, 2)
        return is_put


def test_what_the_kernel_worked_out_too_early_is_put_right(family):
    child, grandchild = family
    map_of_kernel = Overwriting()
    map_of_kernel.newborn = grandchild
    kept = Members(map_of_kernel)
    kept.watch(identity(child.pid), 1)
    assert kept.of(process(grandchild)) == 3


def test_who_ends_while_its_tree_is_removed_is_not_put_back(family):
    child, grandchild = family
    map_of_kernel = Busy(lambda *_: None)
    kept = Members(map_of_kernel)
    kept.watch(identity(child.pid), 1)
    kept.watch(identity(grandchild), 2)
    map_of_kernel.happens = lambda kept, _: kept.remove(grandchild)
    kept.unwatch(1)
    assert not map_of_kernel


def test_who_has_the_pid_of_one_that_ended_stays_in(family, monkeypatch):
    child, _ = family
    earlier = identity(child.pid)
    heir = clock.ticks(earlier.start_time) + 7
    map_of_kernel = Kept()
    kept = Members(map_of_kernel)

    def has_ended(pid, _):
        map_of_kernel[pid] = heir, 2
        return True

    monkeypatch.setattr(members, "has_ended", has_ended)
    kept._join(earlier, 1)
    assert map_of_kernel == {child.pid: (heir, 2)}


def test_by_proc_who_has_ended_is_forgotten_and_the_others_are_not(family):
    child, grandchild = family
    lineage = Lineage()
    lineage.watch(identity(child.pid), 1)
    for _ in range(20):
        gone = subprocess.Popen(["sleep", "600"])
        lineage._members[identity(gone.pid)] = 1
        gone.kill()
        gone.wait()
    child.kill()
    child.wait()
    lineage.forget_ended()
    assert lineage._members == {identity(grandchild): 1}


def test_who_was_missed_is_found_by_its_ancestors_when_there_is_room(family):
    child, grandchild = family
    map_of_kernel = Kept()
    kept = Members(map_of_kernel)
    kept.watch(identity(child.pid), 4)
    map_of_kernel.remove(grandchild)
    kept.find_missed(0)
    assert kept.of(process(grandchild)) == 0, "none was missed"
    map_of_kernel.has_room = False
    kept.find_missed(1)
    assert kept.of(process(grandchild)) == 0
    map_of_kernel.has_room = True
    kept.find_missed(1)
    assert kept.of(process(grandchild)) == 4
    assert kept.of(process(os.getpid())) == 0


def test_whose_end_the_kernel_missed_is_forgotten_when_it_says_so(family):
    child, grandchild = family
    map_of_kernel = Kept()
    kept = Members(map_of_kernel)
    kept.watch(identity(child.pid), 4)
    child.kill()
    child.wait()
    kept.find_missed(0)
    assert set(map_of_kernel) == {child.pid, grandchild}, "none was missed"
    kept.find_missed(1)
    assert set(map_of_kernel) == {grandchild}


def test_who_has_ended_and_was_not_waited_for_is_no_member(family):
    child, _ = family
    map_of_kernel = Kept()
    kept = Members(map_of_kernel)
    child.kill()
    wait_until(lambda: procfs.is_zombie(child.pid), "its end")
    kept.watch(identity(child.pid), 1)
    kept.find_missed(1)
    assert not map_of_kernel


class Restless(Kept):
    """In which somebody ends whenever he is come to, so that every pass begins anew."""

    def pids(self):
        return itertools.cycle(list(self))


def test_a_tree_is_removed_while_others_fork_and_end_all_the_time(family):
    child, grandchild = family
    map_of_kernel = Restless()
    kept = Members(map_of_kernel)
    kept.watch(identity(child.pid), 1)
    kept.watch(identity(grandchild), 2)
    kept.unwatch(1)
    assert map_of_kernel == {grandchild: (clock.ticks(identity(grandchild).start_time), 2)}


def test_a_root_that_has_ended_is_said(kept):
    gone = subprocess.Popen(["sleep", "600"])
    root = identity(gone.pid)
    gone.kill()
    gone.wait()
    with pytest.raises(PortwatchError, match=f"process {gone.pid} has ended"):
        kept.watch(root, 1)


def test_by_proc_who_is_born_later_is_in():
    lineage = Lineage()
    lineage.watch(identity(os.getpid()), 1)
    late = subprocess.Popen(["sleep", "600"])
    assert lineage.of(process(late.pid)) == 1
    late.kill()
    late.wait()


def test_by_proc_a_member_stays_in_when_its_parent_has_ended(family):
    child, grandchild = family
    lineage = Lineage()
    lineage.watch(identity(child.pid), 1)
    child.kill()
    child.wait()
    assert stat(grandchild)[1] != child.pid
    assert lineage.of(process(grandchild)) == 1


def test_by_proc_a_parent_that_is_younger_than_its_child_is_another_process(family, monkeypatch):
    child, grandchild = family
    reused = Identity(child.pid, identity(grandchild).start_time + 10_000_000)
    monkeypatch.setattr(
        procfs, "stat", lambda pid: (b"x", 1, reused.start_time) if pid == child.pid else stat(pid)
    )
    lineage = Lineage()
    lineage._members[reused] = 1
    assert lineage.of(process(child.pid, reused.start_time)) == 1
    assert lineage.of(process(grandchild)) == 0


def test_a_pid_that_is_nobodys_is_said():
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(PortwatchError, match=f"no process {gone.pid}"):
        root_at(gone.pid)


def test_a_threads_number_is_answered_with_its_process():
    numbers = []
    done = threading.Event()
    thread = threading.Thread(target=lambda: (numbers.append(threading.get_native_id()), done.wait()))
    thread.start()
    wait_until(lambda: numbers, "the thread")
    with pytest.raises(PortwatchError, match=f"{numbers[0]} is a thread of process {os.getpid()}"):
        root_at(numbers[0])
    done.set()
    thread.join()


def test_a_tree_has_a_bit_as_long_as_somebody_watches_it():
    bits = TreeBits()
    one, two = Identity(1, 1), Identity(2, 2)
    assert (bits.acquire(one), bits.acquire(two), bits.acquire(one)) == ((1, True), (2, True), (1, False))
    assert (bits.release(one), bits.release(one)) == ((1, False), (1, True))
    assert bits.acquire(Identity(3, 3)) == (1, True)
    assert bits.all == 3


def test_too_many_trees_are_refused():
    bits = TreeBits()
    for number in range(TREES_MAX):
        bits.acquire(Identity(number + 1, 1))
    with pytest.raises(PortwatchError, match=f"{TREES_MAX} process trees"):
        bits.acquire(Identity(TREES_MAX + 1, 1))
