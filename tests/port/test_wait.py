"""Waiting for a port, with a fake engine."""

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
def wait_for_port(engine):  # noqa: ARG001  # the watchers find the engine by its name, "fake"
    """Return a function that starts a watcher for port 8080 and returns a PortWait."""
    watchers = []

    def start(scope=Scope()):  # noqa: B008  # frozen
        query = PortQuery(Port(8080, ("tcp", "udp")), scope)
        watcher = watch_port(query, "fake", Options())
        watcher.start()
        watchers.append(watcher)
        return PortWait(query, watcher)

    yield start
    for watcher in watchers:
        watcher.stop()


def in_the_background(wait):
    """Call `wait(None)` in a thread. Return the thread, and a function that joins it and returns [result]."""
    results = []
    thread = threading.Thread(target=lambda: results.append(wait(None)), daemon=True)
    thread.start()

    def join():
        thread.join(20)
        return results

    return thread, join


def test_until_open_returns_at_once_if_the_port_is_already_open(engine, wait_for_port):
    engine.open_sockets = [open_socket(1, 8080)]
    assert wait_for_port().until_open(None)


def test_until_open_checks_the_kernel_before_it_returns_false(engine, wait_for_port):
    waiting = wait_for_port()
    assert not waiting.until_open(0)
    engine.open_sockets = [open_socket(1, 8080)]
    assert waiting.until_open(0)


def test_until_open_does_not_return_when_another_port_opens(engine, wait_for_port):
    engine.push(opening(1, 8081))
    engine.open_sockets = [open_socket(1, 8081)]
    assert not wait_for_port().until_open(0.05)


def test_until_open_returns_when_the_port_opens(engine, wait_for_port):
    _, join = in_the_background(wait_for_port().until_open)
    engine.push(opening(1, 8080))
    assert join() == [True]


def test_until_gone_waits_until_every_socket_of_the_port_is_closed(engine, wait_for_port):
    engine.open_sockets = [open_socket(1, 8080), open_socket(2, 8080)]
    waiting = wait_for_port()
    assert not waiting.until_gone(0)
    engine.open_sockets = [open_socket(2, 8080)]
    engine.push(closing(1, 8080))
    assert not waiting.until_gone(0.05)
    thread, join = in_the_background(waiting.until_gone)
    assert thread.is_alive()
    engine.open_sockets = []
    engine.push(closing(2, 8080))
    assert join() == [True]


def test_a_close_of_a_matching_socket_counts_even_if_an_excluded_process_closes_it(engine, wait_for_port):
    engine.open_sockets = [open_socket(1, 8080)]
    waiting = wait_for_port(Scope(process=Filter(exclude=("other",))))
    assert not waiting.until_gone(0)
    engine.push(closing(1, 8080, actor=OTHER))
    engine.open_sockets = []
    assert waiting.until_gone(0)


def test_until_gone_returns_even_if_the_record_of_the_close_was_lost(engine, wait_for_port):
    engine.open_sockets = [open_socket(1, 8080)]
    _, join = in_the_background(wait_for_port().until_gone)
    engine.open_sockets = []
    engine.lose(1)
    assert join() == [True]


def test_a_wait_raises_the_error_of_an_engine_that_fails(engine, wait_for_port):
    waiting = wait_for_port()
    engine.fail(OSError("the ring is gone"))
    with pytest.raises(PortwatchError, match="the ring is gone"):
        waiting._wait(lambda: False, None)
