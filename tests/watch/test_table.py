"""The laws of the table, over random histories, and the cases that gave them."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from portwatch.model import OpenSocket, Process, Record, Socket
from portwatch.watch.table import Table, socket_ids

NGINX = Process(10, 1_000, "nginx", 0)
WORKER = Process(11, 2_000, "nginx", 33)


def tcp(number, port=8080, **fields):
    return Socket(number, 1000 + number, 1, "tcp", "ipv4", "127.0.0.1", port, **fields)


def record(kind, socket, time=1, actor=NGINX, errno=None):
    return Record(kind, time, socket, actor, errno)


def summary(events):
    return [(event.kind, event.cookie, event.port, event.origin) for event in events]


def test_an_open_and_its_close_are_one_event_each():
    table = Table()
    (opened,) = table.apply(record("open", tcp(1), 5))
    (closed,) = table.apply(record("close", tcp(1), 6))
    assert (opened.kind, opened.time, opened.pid, opened.sockets) == ("open", 5, 10, 1)
    assert (closed.kind, closed.time, closed.pid, closed.sockets) == ("close", 6, 10, 0)
    assert closed.seq == opened.seq + 1


def test_a_socket_without_a_cookie_is_known_by_its_address_in_the_kernel():
    table = Table()
    bare = replace(tcp(1), cookie=None, inode=None, sock=0xFFFF888812345678)
    table.apply(record("open", bare))
    assert table.apply(record("open", bare)) == []
    (closed,) = table.apply(record("close", replace(bare, cookie=7, port=0)))
    assert (closed.kind, closed.port) == ("close", 8080)


def test_a_snapshot_meets_by_its_inode_what_came_with_its_address_only():
    table = Table()
    table.apply(record("open", replace(tcp(1), cookie=None, sock=0xFFFF888812345678)))
    assert table.merge([OpenSocket(tcp(1), (NGINX,))], 2, "reconcile") == []
    assert [event.kind for event in table.merge([], 3, "reconcile")] == ["close"]


def test_an_address_that_another_socket_got_is_not_taken_for_the_first():
    table = Table()
    table.apply(record("open", replace(tcp(1), sock=0xFFFF888812345678)))
    other = record("open", replace(tcp(2), sock=0xFFFF888812345678))
    assert [event.kind for event in table.apply(other)] == ["open"]
    assert len(list(table.listeners())) == 2


def test_a_failed_listens_blip_is_nothing():
    assert Table().apply(record("close", tcp(1))) == []


def test_a_close_shows_the_port_of_the_open_since_the_kernel_has_taken_it_back():
    table = Table()
    table.apply(record("open", tcp(1, 40_000)))
    (closed,) = table.apply(record("close", tcp(1, 0)))
    assert closed.port == 40_000


def test_a_socket_that_comes_with_another_port_closed_the_first_one():
    table = Table()
    table.apply(record("open", tcp(1, 40_000)))
    assert summary(table.apply(record("open", tcp(1, 40_001)))) == [
        ("close", 1, 40_000, "event"),
        ("open", 1, 40_001, "event"),
    ]


def test_a_close_by_nobody_known_is_the_one_holders():
    table = Table()
    table.merge([OpenSocket(tcp(1), (WORKER,)), OpenSocket(tcp(2, 81), (NGINX, WORKER))], 1, "snapshot")
    (closed,) = table.apply(record("close", tcp(1), actor=None))
    assert closed.pid == WORKER.pid
    (closed,) = table.apply(record("close", tcp(2, 81), actor=None))
    assert closed.pid is None, "which of two let go last is not known"


def test_mptcp_is_recognised_by_its_inode():
    table = Table()
    table.merge([OpenSocket(tcp(1, mptcp=True), (NGINX,))], 1, "snapshot")
    subflow = replace(tcp(1, mptcp=True), cookie=77)
    assert [event.kind for event in table.apply(record("close", subflow))] == ["close"]


def test_an_inode_that_is_used_again_is_another_socket():
    table = Table()
    table.apply(record("open", tcp(1)))
    assert table.apply(record("close", replace(tcp(1), cookie=2))) == []


def test_a_row_without_cookie_is_recognised_later_by_its_inode():
    table = Table()
    table.merge([OpenSocket(replace(tcp(1), cookie=None), ())], 1, "snapshot")
    assert table.merge([OpenSocket(tcp(1), (NGINX,))], 2, "reconcile") == []
    assert [event.kind for event in table.apply(record("close", tcp(1)))] == ["close"]


def test_the_opener_of_what_was_open_is_its_oldest_holder():
    table = Table()
    (opened,) = table.merge([OpenSocket(tcp(1), (WORKER, NGINX))], 1, "snapshot")
    assert (opened.pid, opened.opener, opened.origin) == (NGINX.pid, NGINX, "snapshot")
    assert next(table.listeners()).opened is None


def test_a_second_listen_changes_the_backlog():
    table = Table()
    table.apply(record("open", tcp(1, backlog=5)))
    assert table.apply(record("backlog", tcp(1, backlog=50))) == []
    assert next(table.listeners()).socket.backlog == 50


@pytest.mark.parametrize(
    ("holder", "refused", "blocks"),
    [
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("::", "127.0.0.1", True),
        ("::", "::1", True),
        ("::1", "127.0.0.1", False),
        ("::ffff:127.0.0.1", "127.0.0.1", True),
        ("::ffff:127.0.0.1", "127.0.0.2", False),
    ],
)
def test_whatever_covers_an_address_is_in_the_way_of_it(holder, refused, blocks):
    def at(number, address):
        family = "ipv6" if ":" in address else "ipv4"
        return Socket(number, number, 1, "tcp", family, address, 80, v6only=False if family == "ipv6" else None)

    table = Table()
    table.apply(record("open", at(1, holder)))
    found = table.blockers_of(at(2, refused))
    assert [one.holders for one in found] == ([(NGINX,)] if blocks else [])


def test_a_v6only_wildcard_is_not_in_the_way_of_v4():
    table = Table()
    table.apply(record("open", Socket(1, 1, 1, "tcp", "ipv6", "::", 80, v6only=True)))
    refused = Socket(2, 2, 1, "tcp", "ipv4", "127.0.0.1", 80)
    assert table.blockers_of(refused) == []


sockets = st.builds(
    lambda number, port, mptcp: tcp(number, port, mptcp=mptcp),
    st.integers(1, 6),
    st.integers(80, 83),
    st.booleans(),
)
holders = st.lists(st.sampled_from([NGINX, WORKER]), max_size=2, unique=True).map(tuple)
snapshots = st.lists(
    st.builds(OpenSocket, sockets, holders), unique_by=lambda held: held.socket.cookie, max_size=6
)


def places(held):
    return sorted((one.socket.cookie, one.socket.port) for one in held)


class Histories(RuleBasedStateMachine):
    """A kernel that opens and closes, a ring that may lose, a table that hears of it."""

    @initialize()
    def begin(self):
        self.table = Table()
        self.kernel = {}
        self.told = {}
        self.seq = 0
        self.lost = False
        self.time = 0

    def hear(self, events):
        for event in events:
            assert event.seq == self.seq + 1
            self.seq = event.seq
            if event.kind == "open":
                assert event.cookie not in self.told, "two opens of one socket"
                self.told[event.cookie] = event
            else:
                assert self.told.pop(event.cookie).port == event.port, "a close of another port"
            on_it = [one for one in self.told.values() if one.port == event.port]
            assert event.sockets == len(on_it)

    def happens(self, one, *, is_lost):
        self.time += 1
        self.lost = self.lost or is_lost
        if not is_lost:
            self.hear(self.table.apply(replace(one, time=self.time)))

    @rule(socket=sockets, is_lost=st.booleans())
    def opens(self, socket, is_lost):
        if socket.cookie not in self.kernel:
            self.kernel[socket.cookie] = socket
            self.happens(record("open", socket), is_lost=is_lost)

    @precondition(lambda self: self.kernel)
    @rule(data=st.data(), is_lost=st.booleans())
    def closes(self, data, is_lost):
        socket = self.kernel.pop(data.draw(st.sampled_from(sorted(self.kernel))))
        self.happens(record("close", replace(socket, port=0)), is_lost=is_lost)

    @rule(socket=sockets)
    def listen_fails(self, socket):
        if socket.cookie not in self.kernel and socket.cookie not in self.told:
            assert self.table.apply(record("close", socket)) == []

    @rule(by=holders)
    def checks(self, by):
        self.time += 1
        self.hear(
            self.table.merge([OpenSocket(one, by) for one in self.kernel.values()], self.time, "reconcile")
        )
        self.lost = False

    @rule(data=st.data(), by=holders)
    def checks_while_things_happen(self, data, by):
        """The snapshot is taken somewhere within what happens; each change has its record."""
        changes = data.draw(st.lists(sockets, max_size=5))
        seen_at = data.draw(st.integers(0, len(changes)))
        records, seen = [], None
        for index, socket in enumerate([*changes, None]):
            if index == seen_at:
                seen = [OpenSocket(one, by) for one in self.kernel.values()]
            if socket is None:
                break
            if socket.cookie in self.kernel:
                records.append(record("close", replace(self.kernel.pop(socket.cookie), port=0)))
            else:
                self.kernel[socket.cookie] = socket
                records.append(record("open", socket))
        pending = {name for one in records for name in socket_ids(one.socket)}
        self.hear(self.table.merge(seen, self.time, "reconcile", pending))
        for one in records:
            self.happens(one, is_lost=False)
        self.lost = self.lost and bool(pending)

    @invariant()
    def whatever_is_open_is_in_the_way_of_its_port(self):
        for port in range(80, 84):
            found = {one.socket.cookie for one in self.table.blockers_of(tcp(0, port))}
            assert found == {key for key, one in self.told.items() if one.port == port}

    @invariant()
    def the_table_is_what_was_told(self):
        assert places(self.table.listeners()) == sorted((key, one.port) for key, one in self.told.items())

    @invariant()
    def without_loss_the_table_is_what_the_kernel_has(self):
        if not self.lost:
            assert {key: one.port for key, one in self.told.items()} == {
                key: one.port for key, one in self.kernel.items()
            }


Histories.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase


@given(st.lists(snapshots, max_size=4), snapshots)
def test_after_a_merge_the_table_equals_the_snapshot(before, last):
    table = Table()
    for snapshot in [*before, last]:
        table.merge(snapshot, 1, "reconcile")
    assert places(table.listeners()) == places(last)
    assert table.merge(last, 2, "reconcile") == []


@given(snapshots)
def test_replay_tells_what_is_open(snapshot):
    table = Table()
    told = table.merge(snapshot, 1, "snapshot")
    again = table.replay(2, "snapshot")
    assert [(event.cookie, event.pid, event.sockets) for event in again] == [
        (event.cookie, event.pid, table._sockets_at[(1, "tcp", "127.0.0.1", event.port)]) for event in told
    ]
    assert not {event.seq for event in told} & {event.seq for event in again}
