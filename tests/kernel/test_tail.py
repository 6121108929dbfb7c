"""The commands `portwatch tail` and `portwatch list` on real sockets."""

import json
import os
import subprocess
import threading
from contextlib import contextmanager

import pytest
from commands import PORTWATCH
from port_commands import poll_often, run
from support import ENGINE_NAMES, PATIENCE

from portwatch import list_listeners
from portwatch.engines.poll import PollEngine


@pytest.fixture(params=[name for name in ENGINE_NAMES if name != PollEngine.name])
def engine_that_sees_failures(request):
    return ["--engine", request.param]


@contextmanager
def tail(actor, *arguments):
    """Run tail for an actor's network namespace, and yield a function that reads the next line of output."""
    with subprocess.Popen(
        [*PORTWATCH, "tail", *poll_often("tail"), "--netns", actor.namespace, *arguments],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        timeout = threading.Timer(PATIENCE, process.kill)
        timeout.start()
        try:
            yield lambda: process.stdout.readline().removesuffix("\n")
        finally:
            timeout.cancel()
            process.terminate()


def read_ports(read, count):
    return [json.loads(read())["port"] for _ in range(count)]


def listed_ports(actor, *arguments):
    result = run("list", actor, "--json", *arguments)
    assert result.returncode == 0, result.stderr
    return {json.loads(line)["port"] for line in result.stdout.splitlines()}


@pytest.fixture
def actors(make_actor):
    """Three actors in one network namespace that listen on ports 8000, 8001 and 8002."""
    first = make_actor()
    actors = [first, make_actor(first.namespace), make_actor(first.namespace)]
    for number, actor in enumerate(actors):
        actor.do(f"s = listener(port={8000 + number})")
    return actors


def test_tail_with_a_pid_reports_only_ports_of_that_tree(actors, engine):
    root, other, _ = actors
    with tail(root, "--json", "--pid", str(root.pid), *engine) as read:
        assert read_ports(read, 1) == [8000]
        other.do("t = listener(port=8080)")
        root.do("child = fork(lambda: globals().update(t=listener(port=8081)))")
        assert read_ports(read, 1) == [8081]


def test_tail_with_several_pids_reports_ports_of_all_their_trees(actors, engine):
    first, second, third = actors
    with tail(first, "--json", "--pid", str(first.pid), "--pid", str(second.pid), *engine) as read:
        assert sorted(read_ports(read, 2)) == [8000, 8001]
        third.do("t = listener(port=8080)")
        first.do("t = listener(port=8081)")
        assert read_ports(read, 1) == [8081]
        second.do("t = listener(port=8082)")
        assert read_ports(read, 1) == [8082]


def test_tail_with_not_pid_reports_only_ports_outside_the_trees(actors, engine):
    first, second, third = actors
    with tail(first, "--json", "--not-pid", str(first.pid), "--not-pid", str(second.pid), *engine) as read:
        assert read_ports(read, 1) == [8002]
        first.do("child = fork(lambda: globals().update(t=listener(port=8080)))")
        second.do("t = listener(port=8081)")
        third.do("t = listener(port=8082)")
        assert read_ports(read, 1) == [8082]


def test_list_with_pid_and_not_pid_includes_and_excludes_trees(actors, engine):
    first, second, _ = (str(actor.pid) for actor in actors)
    actors[0].do("child = fork(lambda: globals().update(t=listener(port=8080)))")
    assert listed_ports(actors[0], "--pid", first, *engine) == {8000, 8080}
    assert listed_ports(actors[0], "--pid", first, "--pid", second, *engine) == {8000, 8001, 8080}
    assert listed_ports(actors[0], "--not-pid", first, *engine) == {8001, 8002}
    assert listed_ports(actors[0], "--pid", first, "--pid", second, "--not-pid", first, *engine) == {8001}


def test_list_listeners_returns_the_ports_that_a_tree_holds(actor, make_actor, engine):
    other = make_actor(actor.namespace)
    actor.do("s = listener(port=8080); child = fork(lambda: globals().update(t=listener(port=8081)))")
    other.do("s = listener(port=8082)")
    for pid, ports in ((actor.pid, {8080, 8081}), (actor.do("child"), {8080, 8081}), (other.pid, {8082})):
        listeners = list_listeners(pid, engine=engine[1])
        assert {listener.port for listener in listeners} == ports
    others = list_listeners(os.getpid(), not_pids=[actor.pid], engine=engine[1])
    assert {listener.port for listener in others if listener.netns == actor.netns} == {8082}


@pytest.mark.parametrize(
    ("socket", "why"),
    [("listener(port=8080)", "is listening"), ("bound(port=8080, kind=TCP)", "is bound to it")],
    ids=["listening", "bound"],
)
def test_a_failed_bind_names_the_process_that_has_the_port(make_actor, engine_that_sees_failures, socket, why):
    holder = make_actor()
    other = make_actor(holder.namespace)
    holder.do(f"s = {socket}; ready = listener(port=8000)")
    with tail(holder, *engine_that_sees_failures) as read:
        assert ":80" in read()  # the snapshot is printed after the hooks are attached
        assert "error" in other.attempt("listener(port=8080)")
        line = next(line for line in iter(read, "") if "is open" not in line)
    assert "bind failed   tcp 127.0.0.1:8080 " in line
    assert f" {other.process} ({other.pid}), " in line
    assert line.endswith(f"EADDRINUSE, {holder.process} ({holder.pid}) {why}")
