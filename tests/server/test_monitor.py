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


class Recorder(list):
    """An output that records events as (kind, port, origin)."""

    def __call__(self, event):
        self.append((event.kind, event.port, event.origin))


@pytest.fixture
def events():
    return Recorder()


@pytest.fixture
def start(engine, events):  # noqa: ARG001  # the monitor finds the fake engine by its name
    """A function that starts a monitor. The monitor is stopped at the end of the test."""
    monitors = []

    def start_monitor(scope=None, *, on_failure=lambda: None, resumes=False, outputs=None):
        monitor = Monitor(Settings(engine="fake", scope=scope or Scope()), outputs or [events], on_failure)
        monitors.append(monitor)
        monitor.start(100, resumes=resumes)
        return monitor

    yield start_monitor
    for monitor in monitors:
        monitor.stop()


def port(number):
    return Scope(port=Filter(((number, number),)))


def test_if_an_output_raises_the_other_outputs_still_receive_every_event(start, engine, events):
    def fail(_):
        raise RuntimeError("this output always fails")

    start(outputs=[fail, events])
    engine.push(opening(), closing())
    wait_until(lambda: events == [("open", 8080, "event"), ("close", 8080, "event")], "both events")


def test_a_run_that_resumes_a_journal_starts_with_a_gap(start, engine, events):
    engine.open_sockets.append(open_socket())
    start(resumes=True)
    wait_until(
        lambda: events == [("gap", None, "reconcile"), ("open", 8080, "snapshot")], "a gap and the open port"
    )


def test_after_a_change_of_scope_outputs_get_a_gap_and_the_open_ports(start, engine, events):
    engine.open_sockets += [open_socket(1, 8080), open_socket(2, 9090)]
    monitor = start(port(8080))
    wait_until(lambda: len(events) == 1, "port 8080")
    monitor.change(Settings(engine="fake", scope=port(9090)))
    assert [listener.socket.port for listener in monitor.listeners()] == [9090]
    engine.push(closing(1, 8080), closing(2, 9090))
    wait_until(lambda: len(events) == 4, "the events of port 9090")
    assert events[1:] == [("gap", None, "reconcile"), ("open", 9090, "snapshot"), ("close", 9090, "event")]


def test_a_change_of_settings_changes_the_process_trees_that_are_excluded(start, engine):
    monitor = start()
    monitor.change(Settings(engine="fake", pids=Filter((), (os.getpid(),))))
    assert engine.watched == {1: os.getpid()}
    monitor.change(Settings(engine="fake"))
    assert engine.watched == {}


def test_settings_that_need_a_restart_are_refused_and_change_nothing(start):
    monitor = start(port(8080))
    with pytest.raises(PortwatchError, match="host cannot change while the daemon runs"):
        monitor.change(Settings(engine="fake", scope=port(9090), hosts=("other",)))
    assert monitor.settings.scope == port(8080)


def test_an_engine_is_closed_if_the_monitor_was_stopped_while_it_opened(engine, monkeypatch):
    attaching, release, errors = threading.Event(), threading.Event(), []
    monkeypatch.setattr(engine, "attach", lambda: (attaching.set(), release.wait(PATIENCE)))
    monitor = Monitor(Settings(engine="fake"), [], lambda: None)

    def start():
        try:
            monitor.start(1, resumes=False)
        except PortwatchError as error:
            errors.append(str(error))

    starting = threading.Thread(target=start)
    starting.start()
    assert attaching.wait(PATIENCE)
    monitor.stop()
    assert starting.is_alive()
    release.set()
    starting.join(PATIENCE)
    assert errors == ["the daemon was stopped before its engine was open"]
    assert engine.detached == 1


def test_a_failure_of_the_engine_is_reported_with_its_reason(start, engine):
    failed = threading.Event()
    monitor = start(on_failure=failed.set)
    engine.fail(OSError("the ring is gone"))
    assert failed.wait(PATIENCE)
    assert str(monitor.hub.failure) == "the ring is gone"
