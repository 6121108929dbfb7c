"""tail and list, on the real sockets of other processes."""

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from support import ENGINE_NAMES, PATIENCE

from portwatch import list_listeners
from portwatch.engines.poll import PollEngine

PORTWATCH = [sys.executable, "-m", "portwatch"]


@pytest.fixture(params=[name for name in ENGINE_NAMES if name != PollEngine.name])
def engine_that_sees_failures(request):
    return ["--engine", request.param]


@contextmanager
def tail(actor, *arguments):
    """What reads the next line of a tail of an actor's namespace."""
    with subprocess.Popen(
        [*PORTWATCH, "tail", "--interval", "0.05", "--netns", actor.namespace, *arguments],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        giving_up = threading.Timer(PATIENCE, process.kill)
        giving_up.start()
        try:
            yield lambda: process.stdout.readline().removesuffix("\n")
        finally:
            giving_up.cancel()
            process.terminate()


def ports(read, count):
    return [json.loads(read())["port"] for _ in range(count)]


def listed(actor, *arguments):
    result = subprocess.run(
        [*PORTWATCH, "list", "--json", "--netns", actor.namespace, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return {json.loads(line)["port"] for line in result.stdout.splitlines()}


@pytest.fixture
def family(make_actor):
    """Three processes that listen in one namespace: on 8000, 8001 and 8002."""
    first = make_actor()
    made = [first, make_actor(first.namespace), make_actor(first.namespace)]
    for number, one in enumerate(made):
        one.do(f"s = listener(port={8000 + number})")
    return made


def test_a_tree_is_told_and_nobody_else(family, engine):
    root, other, _ = family
    with tail(root, "--json", "--pid", str(root.pid), *engine) as read:
        assert ports(read, 1) == [8000]
        other.do("t = listener(port=8080)")
        root.do("child = fork(lambda: globals().update(t=listener(port=8081)))")
        assert ports(read, 1) == [8081]


def test_several_trees_are_told(family, engine):
    one, other, third = family
    with tail(one, "--json", "--pid", str(one.pid), "--pid", str(other.pid), *engine) as read:
        assert sorted(ports(read, 2)) == [8000, 8001]
        third.do("t = listener(port=8080)")
        one.do("t = listener(port=8081)")
        assert ports(read, 1) == [8081]
        other.do("t = listener(port=8082)")
        assert ports(read, 1) == [8082]


def test_all_is_told_but_trees_that_are_left_out(family, engine):
    one, other, third = family
    with tail(one, "--json", "--not-pid", str(one.pid), "--not-pid", str(other.pid), *engine) as read:
        assert ports(read, 1) == [8002]
        one.do("child = fork(lambda: globals().update(t=listener(port=8080)))")
        other.do("t = listener(port=8081)")
        third.do("t = listener(port=8082)")
        assert ports(read, 1) == [8082]


def test_what_trees_hold_is_listed_or_left_out(family, engine):
    one, other, _ = (str(each.pid) for each in family)
    family[0].do("child = fork(lambda: globals().update(t=listener(port=8080)))")
    assert listed(family[0], "--pid", one, *engine) == {8000, 8080}
    assert listed(family[0], "--pid", one, "--pid", other, *engine) == {8000, 8001, 8080}
    assert listed(family[0], "--not-pid", one, *engine) == {8001, 8002}
    assert listed(family[0], "--pid", one, "--pid", other, "--not-pid", one, *engine) == {8001}


def test_a_listing_of_a_tree_is_what_it_holds(actor, make_actor, engine):
    other = make_actor(actor.namespace)
    actor.do("s = listener(port=8080); child = fork(lambda: globals().update(t=listener(port=8081)))")
    other.do("s = listener(port=8082)")
    for pid, ports in ((actor.pid, {8080, 8081}), (actor.do("child"), {8080, 8081}), (other.pid, {8082})):
        found = list_listeners(pid, engine=engine[1])
        assert {one.socket.port for one in found} == ports
    but_for_another = list_listeners(os.getpid(), not_pids=[actor.pid], engine=engine[1])
    assert {one.socket.port for one in but_for_another if one.socket.netns == actor.netns} == {8082}


@pytest.mark.parametrize(
    ("how", "why"),
    [("listener(port=8080)", "is listening"), ("bound(port=8080, kind=TCP)", "has bound it")],
    ids=["listening", "bound"],
)
def test_the_line_of_a_bind_that_failed_names_who_has_the_port(make_actor, engine_that_sees_failures, how, why):
    holder = make_actor()
    other = make_actor(holder.namespace)
    holder.do(f"s = {how}; ready = listener(port=8000)")
    with tail(holder, *engine_that_sees_failures) as read:
        assert ":80" in read()  # what is open is told when the hooks are there
        assert "error" in other.attempt("listener(port=8080)")
        line = next(line for line in iter(read, "") if "is open" not in line)
    assert "bind failed   tcp 127.0.0.1:8080 " in line
    assert f" {other.process} ({other.pid}), " in line
    assert line.endswith(f"EADDRINUSE, {holder.process} ({holder.pid}) {why}")
