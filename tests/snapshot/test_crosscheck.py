"""Two witnesses made one: what an engine found, and what the kernel lists."""

from dataclasses import replace

from fake_engine import open_socket, socket

from portwatch.model import Snapshot
from portwatch.snapshot.crosscheck import cross_checked


def listed(number):
    return replace(socket(number), cookie=None)


def checked(found, *listings, looked_at=()):
    answers = iter(listings)
    met = {one.socket.inode for one in found} | {one.inode for one in looked_at}
    return cross_checked(lambda: Snapshot(tuple(found), met), lambda: next(answers))


def test_what_both_know_is_told_once():
    assert checked([open_socket(1)], [listed(1)]) == [open_socket(1)]


def test_what_nobody_holds_before_and_after_is_listed_without_owner():
    (one,) = checked([], [listed(1)], [listed(1)])
    assert (one.socket.port, one.holders) == (8080, ())


def test_what_closed_while_we_looked_is_not_listed():
    assert checked([], [listed(1)], []) == []


def test_what_opened_while_we_looked_is_left_to_its_record():
    assert checked([], [], [listed(1)]) == []


def test_a_socket_that_is_held_but_not_open_is_not_taken_for_ownerless():
    assert checked([], [listed(1)], [listed(1)], looked_at=[socket(1)]) == []
