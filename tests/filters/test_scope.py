"""Which events, listeners and processes a scope admits."""

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
NGINX = replace(PROCESS, cgroup=f"/system.slice/docker-{CONTAINER}.scope", container=CONTAINER)
WORKER = replace(PROCESS, pid=11, process="worker", cgroup="/user.slice")


def event(kind, actor, opener):
    return Event.about(
        socket(1, 8080),
        actor,
        seq=1,
        time=1,
        kind=kind,
        origin="event",
        opener=opener,
        sockets=1 if kind == "open" else 0,
        engine="core",
    )


EVENT = event("open", actor=NGINX, opener=NGINX)
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
    (Scope(cgroup=Filter((NGINX.cgroup,))), True),
    (Scope(cgroup=Filter(("/system",))), False),
    (Scope(cgroup=Filter((f"{NGINX.cgroup}/init",))), False),
    (Scope(cgroup=Filter(("/system.slice",), (NGINX.cgroup,))), False),
    (Scope(cgroup=Filter((), ("/user.slice",))), True),
    (Scope(container=Filter((CONTAINER,))), True),
    (Scope(container=Filter(("5a", "4f4f"))), True),
    (Scope(container=Filter(("5a",))), False),
    (Scope(container=Filter((), (CONTAINER,))), False),
]


@pytest.mark.parametrize(("scope", "admitted"), SCOPES)
def test_an_event_passes_if_an_included_value_and_no_excluded_value_matches(scope, admitted):
    assert scope.admits(EVENT) is admitted
    listener = Listener("event", 1, socket(1, 8080), 1, NGINX, (NGINX,), "core")
    assert scope.admits_listener(listener) is admitted


def test_an_event_passes_only_if_all_fields_match():
    for (first, first_admits), (second, second_admits) in product(SCOPES, SCOPES):
        first_fields, second_fields = _restricted(first), _restricted(second)
        if first_fields.keys().isdisjoint(second_fields):
            both = Scope(**first_fields, **second_fields)
            assert both.admits(EVENT) is (first_admits and second_admits), (first, second)


def _restricted(scope):
    names = [field.name for field in fields(Scope) if field.init]
    return {name: getattr(scope, name) for name in names if getattr(scope, name) != Filter()}


PATHS = st.lists(st.sampled_from(["a", "b", "ab"]), max_size=3).map(lambda names: "/" + "/".join(names))


@given(PATHS, st.lists(PATHS), st.lists(PATHS))
def test_a_cgroup_path_matches_that_cgroup_and_all_below_it(cgroup, included, excluded):
    def is_in(path):
        parts = [part for part in path.split("/") if part]
        return [part for part in cgroup.split("/") if part][: len(parts)] == parts

    opened = replace(EVENT, cgroup=cgroup, opener=None)
    expected = (not included or any(map(is_in, included))) and not any(map(is_in, excluded))
    assert Scope(cgroup=Filter(tuple(included), tuple(excluded))).admits(opened) is expected


@pytest.mark.parametrize(
    ("field", "value"),
    [("process", "*"), ("cgroup", "/"), ("container", "4f"), ("netns", 1), ("port", (1, 65_535))],
)
def test_an_unknown_value_is_neither_included_nor_excluded(field, value):
    unknown = Event(1, 1, "open", "event")
    assert not Scope(**{field: Filter((value,))}).admits(unknown)
    assert Scope(**{field: Filter((), (value,))}).admits(unknown)


def test_a_gap_always_passes():
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
@pytest.mark.parametrize("opener", [NGINX, WORKER])
@pytest.mark.parametrize("closer", [NGINX, WORKER, None])
def test_a_close_passes_exactly_if_its_open_passed_whichever_process_closes(scope, opener, closer):
    opened = event("open", actor=opener, opener=opener)
    closed = event("close", actor=closer, opener=opener)
    assert scope.admits(opened) is scope.admits(closed)


def test_a_close_whose_opener_is_unknown_matches_no_process_name():
    closed = event("close", actor=NGINX, opener=None)
    assert not Scope(process=Filter(("nginx",))).admits(closed)
    assert Scope(process=Filter((), ("nginx",))).admits(closed)


def test_a_close_read_from_json_is_filtered_by_the_container_of_the_closing_process():
    closed = event("close", actor=NGINX, opener=NGINX)
    assert Scope(container=Filter((CONTAINER,))).admits(Event.from_dict(closed.as_dict()))


def test_a_listener_matches_if_its_opener_or_any_holder_matches():
    elsewhere = replace(PROCESS, pid=11, cgroup="/user.slice")
    listener = Listener("event", 1, socket(1, 8080), 1, NGINX, (elsewhere,), "core")
    for path in ("/user.slice", "/system.slice"):
        assert Scope(cgroup=Filter((path,))).admits_listener(listener)
    unowned = Listener("event", 1, socket(1, 8080), 1, None, (), "core")
    assert not Scope(cgroup=Filter(("/",))).admits_listener(unowned)
    assert Scope(cgroup=Filter((), ("/",))).admits_listener(unowned)
