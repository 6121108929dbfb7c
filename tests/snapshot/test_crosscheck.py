"""Completing a snapshot with the kernel's list of sockets."""

from dataclasses import replace

from fake_engine import open_socket, socket

from portwatch.model import Snapshot
from portwatch.snapshot.crosscheck import cross_checked


def listed(number):
    return replace(socket(number), cookie=None)


def checked(open_sockets, *listings, not_open=()):
    """Cross-check a snapshot of `open_sockets`. Each read of the kernel's list returns the next of `listings`.

    The snapshot has also seen the sockets `not_open`, but does not report them as open.
    """
    pending = iter(listings)
    seen = {found.socket.inode for found in open_sockets} | {socket.inode for socket in not_open}
    return cross_checked(lambda: Snapshot(tuple(open_sockets), seen), lambda: next(pending))


def test_a_socket_that_is_in_the_snapshot_and_in_the_list_is_returned_once():
    assert checked([open_socket(1)], [listed(1)]) == [open_socket(1)]


def test_a_socket_that_only_the_list_has_is_returned_without_holders():
    (missed,) = checked([], [listed(1)], [listed(1)])
    assert (missed.socket.port, missed.holders) == (8080, ())


def test_a_socket_that_closed_during_the_snapshot_is_left_out():
    assert checked([], [listed(1)], []) == []


def test_a_socket_that_opened_during_the_snapshot_is_left_out():
    assert checked([], [], [listed(1)]) == []


def test_a_listed_socket_that_the_snapshot_saw_as_not_open_is_left_out():
    assert checked([], [listed(1)], [listed(1)], not_open=[socket(1)]) == []
