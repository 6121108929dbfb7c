"""Whom it concerns."""

from dataclasses import fields, replace
from itertools import product

import pytest
from fake_engine import PROCESS, socket
from hypothesis import given
from hypothesis import strategies as st

from portwatch.event import Event, Listener
from portwatch.filters.filter import Filter
from portwatch.filters.scope import Scope

CONTAINER = "4f" * 32
PLACED = replace(PROCESS, cgroup=f"/system.slice/docker-{CONTAINER}.scope", container=CONTAINER)
WORKER = replace(PROCESS, pid=11, process="worker", cgroup="/user.slice")
EVENT = Event.about(
    socket(1, 8080),
    PLACED,
    seq=1,
    time=1,
    kind="open",
    origin="event",
    opener=PLACED,
    sockets=1,
    engine="core",
)
SCOPES = [
    (Scope(), True),
    (Scope(port=Filter(((80, 80), (8000, 8999)))), True),
    (Scope(port=Filter(((80, 80),))), False),
    (Scope(port=Filter((), ((8080, 8080),))), False),
    (Scope(port=Filter(((8000, 8999),), ((8080, 8080),))), False),
    (Scope(proto=Filter(("udp",))), False),
    (Scope(proto=Filter(("udp", "tcp"))), True),
    (Scope(exposure=Filter(("loopback",))), True),
    (Scope(process=Filter(("ngin*",))), True),
    (Scope(process=Filter((), ("nginx",))), False),
    (Scope(netns=Filter((2,))), False),
    (Scope(netns=Filter((), (1,))), False),
    (Scope(cgroup=Filter(("/",))), True),
    (Scope(cgroup=Filter(("/system.slice",))), True),
    (Scope(cgroup=Filter(("/user.slice", "/system.slice/"))), True),
    (Scope(cgroup=Filter((PLACED.cgroup,))), True),
    (Scope(cgroup=Filter(("/system",))), False),
    (Scope(cgroup=Filter((f"{PLACED.cgroup}/init",))), False),
    (Scope(cgroup=Filter(("/system.slice",), (PLACED.cgroup,))), False),
    (Scope(cgroup=Filter((), ("/user.slice",))), True),
    (Scope(container=Filter((CONTAINER,))), True),
    (Scope(container=Filter(("5a", "4f4f"))), True),
    (Scope(container=Filter(("5a",))), False),
    (Scope(container=Filter((), (CONTAINER,))), False),
]


@pytest.mark.parametrize(("scope", "admitted"), SCOPES)
def test_several_values_widen_and_what_is_unwanted_is_out(scope, admitted):
    assert scope.admits(EVENT) is admitted
    listener = Listener("event", 1, socket(1, 8080), 1, PLACED, (PLACED,), "core")
    assert scope.admits_listener(listener) is admitted


def test_different_options_narrow():
    for (one, takes_one), (other, takes_other) in product(SCOPES, SCOPES):
        first, second = _chosen(one), _chosen(other)
        if first.keys().isdisjoint(second):
            assert Scope(**first, **second).admits(EVENT) is (takes_one and takes_other), (one, other)


def _chosen(scope):
    return {
        one.name: only for one in fields(Scope) if one.init and (only := getattr(scope, one.name)) != Filter()
    }


PATHS = st.lists(st.sampled_from(["a", "b", "ab"]), max_size=3).map(lambda names: "/" + "/".join(names))


@given(PATHS, st.lists(PATHS), st.lists(PATHS))
def test_a_cgroup_is_wanted_with_all_that_is_below_it(cgroup, wanted, unwanted):
    def is_in(path):
        parts = [part for part in path.split("/") if part]
        return [part for part in cgroup.split("/") if part][: len(parts)] == parts

    event = replace(EVENT, cgroup=cgroup, opener=None)
    expected = (not wanted or any(map(is_in, wanted))) and not any(map(is_in, unwanted))
    assert Scope(cgroup=Filter(tuple(wanted), tuple(unwanted))).admits(event) is expected


@pytest.mark.parametrize(
    ("field", "value"),
    [("process", "*"), ("cgroup", "/"), ("container", "4f"), ("netns", 1), ("port", (1, 65_535))],
)
def test_what_is_not_known_is_neither_wanted_nor_unwanted(field, value):
    unknown = Event(1, 1, "open", "event")
    assert not Scope(**{field: Filter((value,))}).admits(unknown)
    assert Scope(**{field: Filter((), (value,))}).admits(unknown)


def test_a_gap_concerns_everybody():
    assert Scope(port=Filter(((1, 1),))).admits(Event(1, 1, "gap", "reconcile", lost=3))


@pytest.mark.parametrize(
    "scope",
    [
        Scope(process=Filter(("nginx",))),
        Scope(process=Filter((), ("nginx",))),
        Scope(cgroup=Filter(("/system.slice",))),
        Scope(cgroup=Filter((), ("/system.slice",))),
        Scope(container=Filter((CONTAINER,))),
        Scope(container=Filter((), (CONTAINER,))),
    ],
)
@pytest.mark.parametrize("opener", [PLACED, WORKER])
@pytest.mark.parametrize("closer", [PLACED, WORKER, None])
def test_a_close_is_wanted_where_its_open_was_whoever_closes_it(scope, opener, closer):
    opened = Event.about(
        socket(1, 8080),
        opener,
        seq=1,
        time=1,
        kind="open",
        origin="event",
        opener=opener,
        sockets=1,
        engine="core",
    )
    closed = Event.about(
        socket(1, 8080),
        closer,
        seq=2,
        time=2,
        kind="close",
        origin="event",
        opener=opener,
        sockets=0,
        engine="core",
    )
    assert scope.admits(opened) is scope.admits(closed)


def test_a_close_of_what_nobody_is_known_to_have_opened_is_nobodys():
    closed = Event.about(
        socket(1, 8080),
        PLACED,
        seq=2,
        time=2,
        kind="close",
        origin="event",
        opener=None,
        sockets=0,
        engine="core",
    )
    assert not Scope(process=Filter(("nginx",))).admits(closed)
    assert Scope(process=Filter((), ("nginx",))).admits(closed)


def test_a_close_that_was_read_from_json_is_where_it_happened():
    closed = Event.about(
        socket(1, 8080),
        PLACED,
        seq=2,
        time=2,
        kind="close",
        origin="event",
        opener=PLACED,
        sockets=0,
        engine="core",
    )
    assert Scope(container=Filter((CONTAINER,))).admits(Event.from_dict(closed.as_dict()))


def test_a_listener_is_whoevers_that_holds_it():
    elsewhere = replace(PROCESS, pid=11, cgroup="/user.slice")
    listener = Listener("event", 1, socket(1, 8080), 1, PLACED, (elsewhere,), "core")
    for path in ("/user.slice", "/system.slice"):
        assert Scope(cgroup=Filter((path,))).admits_listener(listener)
    nobodys = Listener("event", 1, socket(1, 8080), 1, None, (), "core")
    assert not Scope(cgroup=Filter(("/",))).admits_listener(nobodys)
    assert Scope(cgroup=Filter((), ("/",))).admits_listener(nobodys)
