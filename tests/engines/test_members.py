"""Membership in process trees, with real processes.

`Members` keeps the members in a map that the kernel updates. An entry of the map is (start time, trees), in
which `trees` has one bit for each tree. `Lineage` finds the members in /proc.
"""

import itertools
import os

import pytest
from processes import end, identity, process, sleeping
from support import wait_until

from portwatch.engines import members
from portwatch.engines.members import NO_ROOM, Members
from portwatch.errors import PortwatchError
from portwatch.linux import clock, procfs
from portwatch.linux.lineage import Lineage
from portwatch.linux.procfs import stat


class FakeMap(dict):
    """A map that only the test changes. A walk also yields `stale_pids`, which have no entries any more."""

    def __init__(self):
        self.stale_pids = []
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
        return [*self, *self.stale_pids]


class InterruptedMap(FakeMap):
    """A map that calls `interrupt(map, pid)` once, just before it puts an entry."""

    def __init__(self, interrupt):
        super().__init__()
        self.interrupt = interrupt

    def put(self, pid, start, trees, *, is_new):
        interrupt, self.interrupt = self.interrupt, lambda *_: None
        interrupt(self, pid)
        return super().put(pid, start, trees, is_new=is_new)


class OverwritingMap(FakeMap):
    """A map in which a late fork overwrites the first entry of `newborn` with an outdated set of trees."""

    def __init__(self, newborn):
        super().__init__()
        self.newborn = newborn

    def put(self, pid, start, trees, *, is_new):
        has_put = super().put(pid, start, trees, is_new=is_new)
        if pid == self.newborn:
            self.newborn, self[pid] = None, (start, 2)
        return has_put


class EndlessMap(FakeMap):
    """A map whose walk never ends, as if entries were deleted all the time."""

    def pids(self):
        return itertools.cycle(list(self))


@pytest.fixture(params=["kernel", "proc"])
def membership(request):
    """`Members` with a map that no fork updates, or `Lineage`."""
    return Members(FakeMap()) if request.param == "kernel" else Lineage()


def ticks(pid):
    return clock.ticks(stat(pid)[2])


def test_existing_children_and_grandchildren_are_members(membership, family):
    child, grandchild = family
    membership.watch(identity(child.pid), 4)
    assert membership.of(process(child.pid)) == membership.of(process(grandchild)) == 4
    assert membership.of(process(os.getpid())) == 0
    assert membership.of(process(os.getpid()), process(grandchild)) == 4


def test_a_later_process_with_the_pid_of_a_member_is_not_a_member(membership, family):
    child, _ = family
    membership.watch(identity(child.pid), 1)
    assert membership.of(process(child.pid, start_time=stat(child.pid)[2] + 10_000_000)) == 0


def test_unwatch_removes_one_tree_and_keeps_the_others(membership, family):
    child, grandchild = family
    membership.watch(identity(child.pid), 1)
    membership.watch(identity(grandchild), 2)
    assert membership.of(process(grandchild)) == 3
    membership.unwatch(1)
    assert membership.of(process(child.pid)) == 0
    assert membership.of(process(grandchild)) == 2


def test_watch_refuses_a_root_that_has_ended(membership):
    with sleeping() as root_process:
        root = identity(root_process.pid)
    with pytest.raises(PortwatchError, match=f"process {root.pid} has ended"):
        membership.watch(root, 1)


def test_unwatch_ignores_members_that_end_during_the_walk(family):
    child, grandchild = family
    entries = FakeMap()
    membership = Members(entries)
    membership.watch(identity(child.pid), 1)
    entries.stale_pids.append(grandchild)
    del entries[grandchild]
    membership.unwatch(1)
    assert not entries


def test_parents_are_added_before_children(family, monkeypatch):
    child, grandchild = family
    monkeypatch.setattr(procfs, "pids", lambda: [grandchild, child.pid, os.getpid()])
    entries = FakeMap()
    Members(entries).watch(identity(os.getpid()), 1)
    assert list(entries) == [os.getpid(), child.pid, grandchild]


def test_a_grandchild_is_added_even_if_its_parent_ends_during_watch(family):
    child, grandchild = family
    has_other_parent = []

    def end_child(entries, pid):
        entries.interrupt = end_child
        if pid == grandchild:
            end(child)
            has_other_parent.append(stat(grandchild)[1] != child.pid)

    entries = InterruptedMap(end_child)
    Members(entries).watch(identity(os.getpid()), 1)
    assert has_other_parent == [True]
    assert entries[grandchild] == (ticks(grandchild), 1)


def test_trees_that_the_kernel_adds_to_an_entry_during_watch_are_kept(family):
    child, _ = family
    pid = child.pid
    membership = Members(InterruptedMap(lambda entries, _: entries.update({pid: (ticks(pid), 2)})))
    membership.watch(identity(pid), 1)
    assert membership.of(process(pid)) == 3


def test_an_entry_that_the_kernel_overwrites_with_an_outdated_set_of_trees_is_corrected(family):
    child, grandchild = family
    membership = Members(OverwritingMap(newborn=grandchild))
    membership.watch(identity(child.pid), 1)
    assert membership.of(process(grandchild)) == 3


def test_a_process_that_ends_during_unwatch_is_not_put_back(family):
    child, grandchild = family
    entries = InterruptedMap(lambda *_: None)
    membership = Members(entries)
    membership.watch(identity(child.pid), 1)
    membership.watch(identity(grandchild), 2)
    entries.interrupt = lambda entries, _: entries.remove(grandchild)
    membership.unwatch(1)
    assert not entries


def test_adding_an_ended_process_does_not_delete_the_entry_of_a_later_process_with_its_pid(family, monkeypatch):
    child, _ = family
    earlier = identity(child.pid)
    later_start = clock.ticks(earlier.start_time) + 7
    entries = FakeMap()
    membership = Members(entries)

    def has_ended(pid, _):
        entries[pid] = later_start, 2
        return True

    monkeypatch.setattr(members, "has_ended", has_ended)
    membership._join(earlier, 1)
    assert entries == {child.pid: (later_start, 2)}


def test_processes_whose_creation_was_missed_are_added_when_the_map_has_room(family):
    child, grandchild = family
    entries = FakeMap()
    membership = Members(entries)
    membership.watch(identity(child.pid), 4)
    entries.remove(grandchild)
    membership.find_missed(0)
    assert membership.of(process(grandchild)) == 0, "nothing was missed"
    entries.has_room = False
    membership.find_missed(1)
    assert membership.of(process(grandchild)) == 0
    entries.has_room = True
    membership.find_missed(1)
    assert membership.of(process(grandchild)) == 4
    assert membership.of(process(os.getpid())) == 0


def test_processes_whose_exits_were_missed_are_removed(family):
    child, grandchild = family
    entries = FakeMap()
    membership = Members(entries)
    membership.watch(identity(child.pid), 4)
    end(child)
    membership.find_missed(0)
    assert set(entries) == {child.pid, grandchild}, "nothing was missed"
    membership.find_missed(1)
    assert set(entries) == {grandchild}


def test_a_zombie_is_not_a_member(family):
    child, _ = family
    entries = FakeMap()
    membership = Members(entries)
    child.kill()
    wait_until(lambda: procfs.is_zombie(child.pid), "its exit")
    membership.watch(identity(child.pid), 1)
    membership.find_missed(1)
    assert not entries


def test_unwatch_ends_while_other_members_fork_and_exit_all_the_time(family):
    child, grandchild = family
    entries = EndlessMap()
    membership = Members(entries)
    membership.watch(identity(child.pid), 1)
    membership.watch(identity(grandchild), 2)
    membership.unwatch(1)
    assert entries == {grandchild: (clock.ticks(identity(grandchild).start_time), 2)}
