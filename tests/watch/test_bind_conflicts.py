"""Who is in the way of a socket: the table knows, /proc confirms, and the kernel is asked last."""

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
from portwatch.watch.bind_conflicts import QUESTIONS_IN_A_BATCH, BindConflicts
from portwatch.watch.table import Table

BY_THE_KERNEL = (Holder(77, "asked", None, "bound"),)
REFUSED = socket(99)


@pytest.fixture
def ended():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = Process(process.pid, stat(process.pid)[2], "python", 0)
    process.communicate(b"\n")
    return found


@pytest.fixture
def ours():
    return Process(os.getpid(), stat(os.getpid())[2], "an earlier name", 0)


@pytest.fixture
def table():
    return Table()


@pytest.fixture
def refusals(engine, table):
    engine.users = BY_THE_KERNEL
    return BindConflicts(engine, table, deque())


def test_who_has_the_socket_open_is_named_as_it_is_called_now(engine, table, refusals, ours):
    with sockets.create_server(("127.0.0.1", 0)) as real:
        place = Socket(1, os.fstat(real.fileno()).st_ino, 1, "tcp", "ipv4", "127.0.0.1", 8080)
        table.apply(Record("open", 1, place, ours))
        name = stat(os.getpid())[0].decode()
        assert refusals.held_by(REFUSED) == (Holder(os.getpid(), name, None, "listening"),)
    assert engine.questions == 0


@pytest.mark.parametrize("who", ["ours", "ended"])
def test_where_the_known_holder_has_it_no_more_the_kernel_is_asked_once(engine, table, refusals, who, request):
    table.apply(opening(actor=request.getfixturevalue(who)))
    assert [refusals.held_by(REFUSED) for _ in range(3)] == [BY_THE_KERNEL] * 3
    assert engine.questions == 1


def test_whose_close_has_come_meanwhile_had_it(engine, table, ended):
    child = Process(11, 2_000_000_000, "worker", 33)
    table.apply(opening(actor=ended))
    batch = deque()
    engine.during_snapshot = [closing(actor=child)]
    refusals = BindConflicts(engine, table, batch)
    assert refusals.held_by(REFUSED) == (Holder(11, "worker", None, "listening"),)
    assert list(batch) == [closing(actor=child)], "what was read is yet to be applied"
    assert engine.questions == 0


def test_another_socket_of_the_same_port_is_another_question(engine, table, refusals, ours, ended):
    engine.users = UNKNOWN_HOLDER
    table.apply(opening(1, actor=ended))
    assert refusals.held_by(REFUSED) == UNKNOWN_HOLDER
    table.apply(closing(1))
    table.apply(opening(2, actor=ours))
    assert [one.pid for one in refusals.held_by(REFUSED)] == [ours.pid]


def test_a_loop_of_failures_has_only_a_few_of_them_looked_into(engine, table, refusals, ours, ended):
    table.apply(opening(1, 1000, actor=ours))
    table.apply(opening(2, 1001, actor=ended))
    answers = [refusals.held_by(socket(99, port)) for port in range(2000, 2100)]
    assert answers == [BY_THE_KERNEL] * QUESTIONS_IN_A_BATCH + [None] * (100 - QUESTIONS_IN_A_BATCH)
    assert engine.questions == QUESTIONS_IN_A_BATCH
    assert [one.pid for one in refusals.held_by(socket(99, 1000))] == [ours.pid]
    assert refusals.held_by(socket(99, 1001)) is None, "who has ended holds nothing"


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), PortwatchError("gone")])
def test_a_question_that_fails_is_answered_by_unknown_and_logged(engine, refusals, error, caplog):
    engine.users = error
    assert refusals.held_by(REFUSED) == UNKNOWN_HOLDER
    assert str(error) in caplog.text
