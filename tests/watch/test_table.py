"""The table: single cases, then invariants over random histories."""

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


def test_an_open_and_a_close_are_one_event_each():
    table = Table()
    (opened,) = table.apply(record("open", tcp(1), 5))
    (closed,) = table.apply(record("close", tcp(1), 6))
    assert (opened.kind, opened.time, opened.pid, opened.sockets) == ("open", 5, 10, 1)
    assert (closed.kind, closed.time, closed.pid, closed.sockets) == ("close", 6, 10, 0)
    assert closed.seq == opened.seq + 1


def test_a_socket_without_a_cookie_is_recognised_by_its_kernel_address():
    table = Table()
    without_cookie = replace(tcp(1), cookie=None, inode=None, sock=0xFFFF888812345678)
    table.apply(record("open", without_cookie))
    assert table.apply(record("open", without_cookie)) == []
    (closed,) = table.apply(record("close", replace(without_cookie, cookie=7, port=0)))
    assert (closed.kind, closed.port) == ("close", 8080)


def test_a_snapshot_recognises_a_socket_without_a_cookie_by_its_inode():
    table = Table()
    table.apply(record("open", replace(tcp(1), cookie=None, sock=0xFFFF888812345678)))
    assert table.merge([OpenSocket(tcp(1), (NGINX,))], 2, "reconcile") == []
    assert [event.kind for event in table.merge([], 3, "reconcile")] == ["close"]


def test_a_socket_that_reuses_a_kernel_address_is_a_new_socket():
    table = Table()
    table.apply(record("open", replace(tcp(1), sock=0xFFFF888812345678)))
    other = record("open", replace(tcp(2), sock=0xFFFF888812345678))
    assert [event.kind for event in table.apply(other)] == ["open"]
    assert len(list(table.listeners())) == 2


def test_a_close_without_an_open_is_ignored():
    assert Table().apply(record("close", tcp(1))) == []


def test_a_close_has_the_port_of_the_open():
    table = Table()
    table.apply(record("open", tcp(1, 40_000)))
    (closed,) = table.apply(record("close", tcp(1, 0)))
    assert closed.port == 40_000


def test_an_open_of_a_known_socket_on_another_port_closes_the_first_port():
    table = Table()
    table.apply(record("open", tcp(1, 40_000)))
    assert summary(table.apply(record("open", tcp(1, 40_001)))) == [
        ("close", 1, 40_000, "event"),
        ("open", 1, 40_001, "event"),
    ]


def test_a_close_without_an_actor_is_attributed_to_the_only_holder():
    table = Table()
    table.merge([OpenSocket(tcp(1), (WORKER,)), OpenSocket(tcp(2, 81), (NGINX, WORKER))], 1, "snapshot")
    (closed,) = table.apply(record("close", tcp(1), actor=None))
    assert closed.pid == WORKER.pid
    (closed,) = table.apply(record("close", tcp(2, 81), actor=None))
    assert closed.pid is None, "either of the two holders may have closed it"


def test_an_mptcp_socket_is_recognised_by_its_inode():
    table = Table()
    table.merge([OpenSocket(tcp(1, mptcp=True), (NGINX,))], 1, "snapshot")
    subflow = replace(tcp(1, mptcp=True), cookie=77)
    assert [event.kind for event in table.apply(record("close", subflow))] == ["close"]


def test_a_socket_that_reuses_an_inode_is_a_new_socket():
    table = Table()
    table.apply(record("open", tcp(1)))
    assert table.apply(record("close", replace(tcp(1), cookie=2))) == []


def test_a_late_close_does_not_affect_a_newer_socket_with_the_same_inode():
    table = Table()
    earlier, later = tcp(1), replace(tcp(2, 9090), inode=tcp(1).inode)
    table.apply(record("open", earlier))
    table.apply(record("open", later))
    table.apply(record("close", earlier))
    assert table.apply(record("open", replace(later, cookie=None))) == []


def test_a_socket_first_seen_without_a_cookie_is_recognised_by_its_inode():
    table = Table()
    table.merge([OpenSocket(replace(tcp(1), cookie=None), ())], 1, "snapshot")
    assert table.merge([OpenSocket(tcp(1), (NGINX,))], 2, "reconcile") == []
    assert [event.kind for event in table.apply(record("close", tcp(1)))] == ["close"]


def test_the_opener_of_a_socket_from_a_snapshot_is_its_oldest_holder():
    table = Table()
    (opened,) = table.merge([OpenSocket(tcp(1), (WORKER, NGINX))], 1, "snapshot")
    assert (opened.pid, opened.opener, opened.origin) == (NGINX.pid, NGINX, "snapshot")
    assert next(table.listeners()).opened is None


def test_a_backlog_record_changes_the_backlog_without_an_event():
    table = Table()
    table.apply(record("open", tcp(1, backlog=5)))
    assert table.apply(record("backlog", tcp(1, backlog=50))) == []
    assert next(table.listeners()).socket.backlog == 50


@pytest.mark.parametrize(
    ("bound", "refused", "blocks"),
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
def test_a_socket_blocks_every_address_that_overlaps_its_own(bound, refused, blocks):
    def at(number, address):
        family = "ipv6" if ":" in address else "ipv4"
        return Socket(number, number, 1, "tcp", family, address, 80, v6only=False if family == "ipv6" else None)

    table = Table()
    table.apply(record("open", at(1, bound)))
    blockers = table.blockers_of(at(2, refused))
    assert [blocker.holders for blocker in blockers] == ([(NGINX,)] if blocks else [])


def test_a_v6only_wildcard_does_not_block_ipv4():
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
    st.builds(OpenSocket, sockets, holders), unique_by=lambda one: one.socket.cookie, max_size=6
)


def cookies_and_ports(open_sockets):
    return sorted((one.socket.cookie, one.socket.port) for one in open_sockets)


class Histories(RuleBasedStateMachine):
    """Opens and closes sockets in a simulated kernel. Some records are lost, and the table gets the others."""

    @initialize()
    def begin(self):
        self.table = Table()
        self.kernel = {}
        self.reported = {}
        self.seq = 0
        self.may_differ = False
        """True if a record was lost since the last merge, so that the table may differ from the kernel."""
        self.time = 0

    def check_events(self, events):
        for event in events:
            assert event.seq == self.seq + 1
            self.seq = event.seq
            if event.kind == "open":
                assert event.cookie not in self.reported, "a socket was opened twice"
                self.reported[event.cookie] = event
            else:
                assert self.reported.pop(event.cookie).port == event.port, (
                    "a close has another port than its open"
                )
            assert event.sockets == sum(one.port == event.port for one in self.reported.values())

    def deliver(self, change, *, is_lost):
        self.time += 1
        self.may_differ = self.may_differ or is_lost
        if not is_lost:
            self.check_events(self.table.apply(replace(change, time=self.time)))

    @rule(socket=sockets, is_lost=st.booleans())
    def open_socket(self, socket, is_lost):
        if socket.cookie not in self.kernel:
            self.kernel[socket.cookie] = socket
            self.deliver(record("open", socket), is_lost=is_lost)

    @precondition(lambda self: self.kernel)
    @rule(data=st.data(), is_lost=st.booleans())
    def close_socket(self, data, is_lost):
        socket = self.kernel.pop(data.draw(st.sampled_from(sorted(self.kernel))))
        self.deliver(record("close", replace(socket, port=0)), is_lost=is_lost)

    @rule(socket=sockets)
    def fail_to_listen(self, socket):
        if socket.cookie not in self.kernel and socket.cookie not in self.reported:
            assert self.table.apply(record("close", socket)) == []

    @rule(by=holders)
    def check(self, by):
        self.time += 1
        self.check_events(
            self.table.merge([OpenSocket(one, by) for one in self.kernel.values()], self.time, "reconcile")
        )
        self.may_differ = False

    @rule(data=st.data(), by=holders)
    def check_during_changes(self, data, by):
        """Merge a snapshot that was taken before, between or after changes.

        The record of every change is applied after the merge, whether or not the snapshot shows the change.
        """
        changes = data.draw(st.lists(sockets, max_size=5))
        snapshot_at = data.draw(st.integers(0, len(changes)))
        records, snapshot = [], None
        for index, socket in enumerate([*changes, None]):
            if index == snapshot_at:
                snapshot = [OpenSocket(one, by) for one in self.kernel.values()]
            if socket is None:
                break
            if socket.cookie in self.kernel:
                records.append(record("close", replace(self.kernel.pop(socket.cookie), port=0)))
            else:
                self.kernel[socket.cookie] = socket
                records.append(record("open", socket))
        pending = {socket_id for change in records for socket_id in socket_ids(change.socket)}
        self.check_events(self.table.merge(snapshot, self.time, "reconcile", pending))
        for change in records:
            self.deliver(change, is_lost=False)
        self.may_differ = self.may_differ and bool(pending)

    @invariant()
    def every_open_socket_blocks_its_port(self):
        for port in range(80, 84):
            blockers = {one.socket.cookie for one in self.table.blockers_of(tcp(0, port))}
            assert blockers == {key for key, one in self.reported.items() if one.port == port}

    @invariant()
    def the_table_equals_what_was_reported(self):
        assert cookies_and_ports(self.table.listeners()) == sorted(
            (key, one.port) for key, one in self.reported.items()
        )

    @invariant()
    def the_table_equals_the_kernel_unless_a_record_was_lost(self):
        if not self.may_differ:
            assert {key: one.port for key, one in self.reported.items()} == {
                key: one.port for key, one in self.kernel.items()
            }


Histories.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase


@given(st.lists(snapshots, max_size=4), snapshots)
def test_after_a_merge_the_table_equals_the_snapshot(before, last):
    table = Table()
    for snapshot in [*before, last]:
        table.merge(snapshot, 1, "reconcile")
    assert cookies_and_ports(table.listeners()) == cookies_and_ports(last)
    assert table.merge(last, 2, "reconcile") == []


@given(snapshots)
def test_replay_reports_every_open_socket_with_a_new_seq(snapshot):
    table = Table()
    events = table.merge(snapshot, 1, "snapshot")
    replayed = table.replay(2, "snapshot")
    assert [(event.cookie, event.pid, event.sockets) for event in replayed] == [
        (event.cookie, event.pid, table._sockets_at[(1, "tcp", "127.0.0.1", event.port)]) for event in events
    ]
    assert not {event.seq for event in events} & {event.seq for event in replayed}
