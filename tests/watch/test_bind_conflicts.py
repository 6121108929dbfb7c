"""The holders of a port on which a bind failed.

If /proc confirms the holders in the table, these are reported. Otherwise the engine looks for the holders.
"""

import os
import socket as sockets
import subprocess
import sys
from collections import deque

import pytest
from fake_engine import closing, opening, socket

from portwatch import PortwatchError
from portwatch.linux.procfs import stat
from portwatch.model import Holder, Process, Record, Socket
from portwatch.snapshot.port_users import UNKNOWN_HOLDER
from portwatch.watch.bind_conflicts import LOOKUPS_PER_BATCH, BindConflicts
from portwatch.watch.table import Table

FROM_ENGINE = (Holder(77, "holder", None, "bound"),)
REFUSED = socket(99)


@pytest.fixture
def ended_process():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = Process(child.pid, stat(child.pid)[2], "python", 0)
    child.communicate(b"\n")
    return process


@pytest.fixture
def own_process():
    return Process(os.getpid(), stat(os.getpid())[2], "an earlier name", 0)


@pytest.fixture
def table():
    return Table()


@pytest.fixture
def conflicts(engine, table):
    engine.holders = FROM_ENGINE
    return BindConflicts(engine, table, deque())


def test_a_known_holder_that_has_the_socket_open_is_reported_by_its_current_name(
    engine, table, conflicts, own_process
):
    with sockets.create_server(("127.0.0.1", 0)) as server:
        blocker = Socket(1, os.fstat(server.fileno()).st_ino, 1, "tcp", "ipv4", "127.0.0.1", 8080)
        table.apply(Record("open", 1, blocker, own_process))
        name = stat(os.getpid())[0].decode()
        assert conflicts.holders_for(REFUSED) == (Holder(os.getpid(), name, None, "listening"),)
    assert engine.port_user_lookups == 0


@pytest.mark.parametrize("holder", ["own_process", "ended_process"])
def test_the_engine_is_asked_once_if_the_known_holder_no_longer_has_the_socket(
    engine, table, conflicts, holder, request
):
    table.apply(opening(actor=request.getfixturevalue(holder)))
    assert [conflicts.holders_for(REFUSED) for _ in range(3)] == [FROM_ENGINE] * 3
    assert engine.port_user_lookups == 1


def test_a_process_whose_close_was_just_read_is_reported_as_the_holder(engine, table, ended_process):
    child = Process(11, 2_000_000_000, "worker", 33)
    table.apply(opening(actor=ended_process))
    batch = deque()
    engine.records_after_snapshot = [closing(actor=child)]
    conflicts = BindConflicts(engine, table, batch)
    assert conflicts.holders_for(REFUSED) == (Holder(11, "worker", None, "listening"),)
    assert list(batch) == [closing(actor=child)], "a record that the lookup read must still be applied"
    assert engine.port_user_lookups == 0


def test_a_new_socket_on_the_same_port_causes_a_new_lookup(
    engine, table, conflicts, own_process, ended_process
):
    engine.holders = UNKNOWN_HOLDER
    table.apply(opening(1, actor=ended_process))
    assert conflicts.holders_for(REFUSED) == UNKNOWN_HOLDER
    table.apply(closing(1))
    table.apply(opening(2, actor=own_process))
    assert [holder.pid for holder in conflicts.holders_for(REFUSED)] == [own_process.pid]


def test_only_a_few_conflicts_of_a_batch_are_looked_up(engine, table, conflicts, own_process, ended_process):
    table.apply(opening(1, 1000, actor=own_process))
    table.apply(opening(2, 1001, actor=ended_process))
    holders = [conflicts.holders_for(socket(99, port)) for port in range(2000, 2100)]
    assert holders == [FROM_ENGINE] * LOOKUPS_PER_BATCH + [None] * (100 - LOOKUPS_PER_BATCH)
    assert engine.port_user_lookups == LOOKUPS_PER_BATCH
    assert [holder.pid for holder in conflicts.holders_for(socket(99, 1000))] == [own_process.pid]
    assert conflicts.holders_for(socket(99, 1001)) is None, "a process that has exited holds no port"


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), PortwatchError("gone")])
def test_a_lookup_that_fails_is_logged_and_the_holder_is_unknown(engine, conflicts, error, caplog):
    engine.holders = error
    assert conflicts.holders_for(REFUSED) == UNKNOWN_HOLDER
    assert str(error) in caplog.text
