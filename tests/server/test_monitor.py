import os
import threading

import pytest
from fake_engine import closing, open_socket, opening
from support import PATIENCE, wait_until

from portwatch import PortwatchError
from portwatch.filters.filter import Filter
from portwatch.filters.scope import Scope
from portwatch.server.monitor import Monitor
from portwatch.server.settings import Settings


class Heard(list):
    """An output that keeps what it is given."""

    def __call__(self, event):
        self.append((event.kind, event.port, event.origin))


@pytest.fixture
def heard():
    return Heard()


@pytest.fixture
def start(engine, heard):  # noqa: ARG001  # it is taken by its name
    """Begins to watch with a scope; what began is ended with the test."""
    begun = []

    def begin(scope=None, *, ended=lambda: None, resumes=False, outputs=None):
        monitor = Monitor(Settings(engine="fake", scope=scope or Scope()), outputs or [heard], ended)
        begun.append(monitor)
        monitor.start(100, resumes=resumes)
        return monitor

    yield begin
    for one in begun:
        one.stop()


def port(number):
    return Scope(port=Filter(((number, number),)))


def test_every_output_gets_every_event_also_beside_one_that_fails(start, engine, heard):
    def fail(_):
        raise RuntimeError("this one always fails")

    start(outputs=[fail, heard])
    engine.push(opening(), closing())
    wait_until(lambda: heard == [("open", 8080, "event"), ("close", 8080, "event")], "both events")


def test_who_followed_an_earlier_run_is_told_of_a_gap_first(start, engine, heard):
    engine.open_sockets.append(open_socket())
    start(resumes=True)
    wait_until(
        lambda: heard == [("gap", None, "reconcile"), ("open", 8080, "snapshot")], "a gap and what is open"
    )


def test_with_another_scope_comes_a_gap_and_then_what_that_admits(start, engine, heard):
    engine.open_sockets += [open_socket(1, 8080), open_socket(2, 9090)]
    monitor = start(port(8080))
    wait_until(lambda: len(heard) == 1, "the one")
    monitor.change(Settings(engine="fake", scope=port(9090)))
    assert [one.socket.port for one in monitor.listeners()] == [9090]
    engine.push(closing(1, 8080), closing(2, 9090))
    wait_until(lambda: len(heard) == 4, "the other")
    assert heard[1:] == [("gap", None, "reconcile"), ("open", 9090, "snapshot"), ("close", 9090, "event")]


def test_the_trees_that_are_left_out_change_with_the_settings(start, engine):
    monitor = start()
    monitor.change(Settings(engine="fake", pids=Filter((), (os.getpid(),))))
    assert engine.watched == {1: os.getpid()}
    monitor.change(Settings(engine="fake"))
    assert engine.watched == {}


def test_a_change_that_needs_a_restart_changes_nothing(start):
    monitor = start(port(8080))
    with pytest.raises(PortwatchError, match="host cannot change while it runs"):
        monitor.change(Settings(engine="fake", scope=port(9090), hosts=("other",)))
    assert monitor.settings.scope == port(8080)


def test_an_engine_that_is_still_opened_at_the_end_is_closed_when_it_is_open(engine, monkeypatch):
    attaching, go_on, refused = threading.Event(), threading.Event(), []
    monkeypatch.setattr(engine, "attach", lambda: (attaching.set(), go_on.wait(PATIENCE)))
    monitor = Monitor(Settings(engine="fake"), [], lambda: None)

    def start():
        try:
            monitor.start(1, resumes=False)
        except PortwatchError as error:
            refused.append(str(error))

    starting = threading.Thread(target=start)
    starting.start()
    assert attaching.wait(PATIENCE)
    monitor.stop()
    assert starting.is_alive()
    go_on.set()
    starting.join(PATIENCE)
    assert refused == ["it was ended before it had begun"]
    assert engine.detached == 1


def test_an_engine_that_fails_ends_it(start, engine):
    ended = threading.Event()
    monitor = start(ended=ended.set)
    engine.fail(OSError("the ring is gone"))
    assert ended.wait(PATIENCE)
    assert str(monitor.hub.failure) == "the ring is gone"
