"""S37: a program that embeds the library forks. Parent and child both get events.

A BPF program stays attached only while a process uses it.
"""

import os
import select
import signal
import socket

import pytest
from support import ENGINE_NAMES, PATIENCE, wait_until

from portwatch import PortWatcher, PortwatchError

ATTACHED = ("bpf-link", "bpf_link", "bpf-prog", "[perf_event]")


def attached_programs(pid):
    """Return the targets of a process's descriptors that keep BPF programs attached."""
    targets = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            targets.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except FileNotFoundError:
            continue  # the process has closed it meanwhile
    return [target for target in targets if any(name in target for name in ATTACHED)]


def fork(child):
    """Run `child` in a forked process, and return its pid and a function that returns what it wrote."""
    ours, its = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(its, str(child()).encode())
        except BaseException as error:
            os.write(its, f"{type(error).__name__}: {error}".encode())
        finally:
            signal.pause()
            os._exit(0)
    os.close(its)

    def answer():
        assert select.select([ours], [], [], PATIENCE)[0], "the child does not answer"
        return os.read(ours, 10_000).decode()

    return pid, answer


@pytest.fixture
def forked():
    children = []

    def start(child):
        pid, answer = fork(child)
        children.append(pid)
        return pid, answer

    yield start
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def opened_port(watcher, events):
    """Open and close a port, and return True once the watcher has reported each of the two once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        wait_until(lambda: [kind for kind, number in events(watcher) if number == port] == ["open"], "the open")
    wait_until(
        lambda: [kind for kind, number in events(watcher) if number == port] == ["open", "close"], "the close"
    )
    return True


def reader():
    """Return a function that reads from a watcher without a callback and returns all events so far."""
    collected = []

    def read(watcher):
        try:
            while True:
                event = watcher.get(0.01)
                collected.append((event.kind, event.port))
        except TimeoutError:
            return collected

    return read


OPTIONS = {"snapshot": False, "interval": 0.05}


@pytest.mark.starts_engine
@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_s37_parent_and_child_get_every_event_once_after_a_fork(engine, forked):
    def watch():
        watcher.start()
        return opened_port(watcher, reader())

    with PortWatcher(engine=engine, **OPTIONS) as watcher:
        assert opened_port(watcher, reader())
        _, answer = forked(watch)
        assert answer() == "True"
        assert opened_port(watcher, reader())


@pytest.mark.starts_engine
@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_s37_a_child_that_stops_the_watcher_does_not_stop_the_parents_watcher(engine, forked):
    def leave():
        watcher.stop()
        return len(attached_programs(os.getpid()))

    with PortWatcher(engine=engine, **OPTIONS) as watcher:
        events = reader()
        _, answer = forked(leave)
        assert answer() == "0"
        for _ in range(3):
            assert opened_port(watcher, events)
        assert watcher.counts.lost == 0


@pytest.mark.starts_engine
@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_s37_a_child_that_outlives_the_parents_watcher_keeps_no_program_attached(engine, forked):
    watcher = PortWatcher(engine=engine, **OPTIONS)
    watcher.start()
    watcher.listeners()  # a program that is being attached at the fork is not closed in the child
    pid, answer = forked(lambda: "alive")
    assert answer() == "alive"
    watcher.stop()
    assert attached_programs(pid) == []


@pytest.mark.starts_engine
@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_s37_a_new_watcher_in_the_child_with_the_parents_options_gets_events(engine, forked):
    def watch():
        with PortWatcher(engine=engine, **OPTIONS) as other:
            return opened_port(other, reader())

    with PortWatcher(engine=engine, callback=lambda _: None, **OPTIONS):
        _, answer = forked(watch)
        assert answer() == "True"


def test_listeners_of_an_inherited_watcher_returns_open_ports_in_the_child(forked):
    with (
        PortWatcher(engine=ENGINE_NAMES[0], **OPTIONS) as watcher,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        port = server.getsockname()[1]
        _, answer = forked(lambda: port in {listener.port for listener in watcher.listeners()})
        assert answer() == "True"


def test_a_watcher_that_was_not_started_before_the_fork_is_not_started_in_the_child(forked):
    def use():
        with pytest.raises(PortwatchError, match="not started"):
            watcher.get(0)
        return "refused"

    watcher = PortWatcher(engine=ENGINE_NAMES[0], **OPTIONS)
    _, answer = forked(use)
    assert answer() == "refused"
