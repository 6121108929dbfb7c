"""Waiting, on an engine that does what the test says."""

import threading

import pytest
from fake_engine import closing, open_socket, opening

from portwatch import Filter, PortwatchError, Scope
from portwatch.engines.protocol import Options
from portwatch.model import Process
from portwatch.port.lookup import Port, PortQuery
from portwatch.port.wait import PortWait, watch_port

OTHER = Process(11, 2_000_000_000, "other", 0)


@pytest.fixture
def start(engine):  # noqa: ARG001  # what it starts reads that one
    """Starts to wait for port 8080, as a scope narrows it."""
    watchers = []

    def begin(scope=Scope()):  # noqa: B008  # frozen
        query = PortQuery(Port(8080, ("tcp", "udp")), scope)
        watcher = watch_port(query, "fake", Options())
        watcher.start()
        watchers.append(watcher)
        return PortWait(query, watcher)

    yield begin
    for watcher in watchers:
        watcher.stop()


def in_the_background(wait):
    """What a wait without a timeout returned, as soon as it has."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(wait(None)), daemon=True)
    thread.start()

    def answer():
        thread.join(20)
        return answers

    return thread, answer


def test_what_is_open_already_is_enough(engine, start):
    engine.open_sockets = [open_socket(1, 8080)]
    assert start().until_open(None)


def test_when_time_is_up_a_last_look_decides(engine, start):
    waiting = start()
    assert not waiting.until_open(0)
    engine.open_sockets = [open_socket(1, 8080)]
    assert waiting.until_open(0)


def test_an_open_of_another_port_is_none(engine, start):
    engine.push(opening(1, 8081))
    engine.open_sockets = [open_socket(1, 8081)]
    assert not start().until_open(0.05)


def test_an_open_ends_the_wait(engine, start):
    _, answer = in_the_background(start().until_open)
    engine.push(opening(1, 8080))
    assert answer() == [True]


def test_gone_means_every_socket(engine, start):
    engine.open_sockets = [open_socket(1, 8080), open_socket(2, 8080)]
    waiting = start()
    assert not waiting.until_gone(0)
    engine.open_sockets = [open_socket(2, 8080)]
    engine.push(closing(1, 8080))
    assert not waiting.until_gone(0.05)
    thread, answer = in_the_background(waiting.until_gone)
    assert thread.is_alive()
    engine.open_sockets = []
    engine.push(closing(2, 8080))
    assert answer() == [True]


def test_gone_is_settled_by_who_opened_it_not_by_who_closes_it(engine, start):
    engine.open_sockets = [open_socket(1, 8080)]
    waiting = start(Scope(process=Filter(exclude=("other",))))
    assert not waiting.until_gone(0)
    engine.push(closing(1, 8080, actor=OTHER))
    engine.open_sockets = []
    assert waiting.until_gone(0)


def test_what_is_found_closed_after_a_loss_counts(engine, start):
    engine.open_sockets = [open_socket(1, 8080)]
    _, answer = in_the_background(start().until_gone)
    engine.open_sockets = []
    engine.lose(1)
    assert answer() == [True]


def test_a_wait_does_not_outlast_its_engine(engine, start):
    waiting = start()
    engine.fail(OSError("the ring is gone"))
    with pytest.raises(PortwatchError, match="the ring is gone"):
        waiting._wait(lambda: False, None)
