"""Events and listeners, and their JSON form."""

import json
from dataclasses import fields, replace

import pytest
from fake_engine import PROCESS, open_socket, opening, socket
from hypothesis import given
from hypothesis import strategies as st
from support import EVENT_FIELDS

from portwatch.event import Event, Listener
from portwatch.model import Holder, Process
from portwatch.watch.table import Table

LISTENER_FIELDS = [name for name in EVENT_FIELDS if name not in ("seq", "kind")]
WORKER = replace(PROCESS, pid=11, start_time=2_000_000_000, process="worker")
LATER = replace(WORKER, pid=9, start_time=3_000_000_000)


def open_event(socket, actor, *, opener=PROCESS, origin="event"):
    return Event.about(
        socket,
        actor,
        seq=41,
        time=1,
        kind="open",
        origin=origin,
        opener=opener,
        sockets=1,
        engine="core",
    )


def test_each_field_of_an_event_has_the_value_of_that_name():
    subject = replace(
        socket(7, 8081), netns=3, device="eth0", mptcp=True, v6only=False, backlog=5, netns_name="blue"
    )
    actor = Process(11, 2, "worker", 1000, 12, "/system.slice", "c0ffee", "pod-1")
    given_fields = {
        "seq": 41,
        "time": 42,
        "kind": "bind_failed",
        "origin": "event",
        "opener": PROCESS,
        "sockets": 43,
        "engine": "core",
        "errno": "EACCES",
        "trees": 44,
    }
    event = Event.about(subject, actor, **given_fields)
    for name in (field.name for field in fields(Event)):
        if name in given_fields:
            assert getattr(event, name) == given_fields[name], name
        elif name in ("held_by", "lost"):
            assert getattr(event, name) is None
        else:
            source = actor if hasattr(actor, name) else subject
            assert getattr(event, name) == getattr(source, name), name


def test_the_process_fields_of_an_event_are_none_if_the_actor_is_unknown():
    event = open_event(socket(), None)
    assert (event.pid, event.start_time, event.process, event.uid, event.cgroup) == (None,) * 5


def test_the_json_form_of_an_event_is_one_line_with_the_documented_fields():
    event = open_event(socket(0x138A), PROCESS)
    line = event.to_json()
    assert "\n" not in line
    assert list(json.loads(line)) == EVENT_FIELDS
    assert json.loads(line)["cookie"] == "0x138a"
    assert json.loads(line)["opener"] == {
        "pid": 10,
        "start_time": "1970-01-01T00:00:01Z",
        "process": "nginx",
        "uid": 0,
    }
    assert [name for name in EVENT_FIELDS if not hasattr(event, name)] == []


def test_a_listener_has_the_fields_of_an_event_except_seq_and_kind():
    table = Table("core")
    table.merge([open_socket()], 1, "snapshot")
    (listener,) = table.listeners()
    values = json.loads(listener.to_json())
    assert list(values) == [*LISTENER_FIELDS, "opened", "holders"]
    event = open_event(listener.socket, PROCESS, origin="snapshot")
    assert {name: getattr(listener, name) for name in LISTENER_FIELDS} == {
        **{name: getattr(event, name) for name in LISTENER_FIELDS},
        "time": None,
    }
    assert {name: values[name] for name in LISTENER_FIELDS} == {
        **{name: event.as_dict()[name] for name in LISTENER_FIELDS},
        "time": None,
    }
    assert listener.as_dict()["holders"] == [{**PROCESS.as_dict(), "container": None}]


def test_the_time_of_a_listener_is_the_time_when_its_socket_was_opened():
    table = Table("core")
    table.apply(opening(time=5_000_000_000))
    (listener,) = table.listeners()
    assert listener.time == listener.opened == 5_000_000_000
    values = listener.as_dict()
    assert values["time"] == values["opened"] == "1970-01-01T00:00:05Z"


@pytest.mark.parametrize(
    ("holders", "owner"),
    [((WORKER, PROCESS), PROCESS), ((LATER, WORKER), WORKER), ((), PROCESS)],
    ids=["the opener if it holds the socket", "else the oldest holder", "else the opener"],
)
def test_the_owner_of_a_listener_is_chosen_from_its_opener_and_its_holders(holders, owner):
    assert Listener("event", 1, socket(), 1, PROCESS, holders, "core").owner == owner


def test_json_escapes_control_characters():
    process = replace(PROCESS, process="\x1b[31m\x9b")
    line = open_event(socket(), process, opener=process).to_json()
    assert line.isprintable()
    assert json.loads(line)["process"] == process.process


TIMES = st.integers(0, 2**63 - 1)
NAMES = st.text(max_size=16)
OPENERS = st.builds(
    Process,
    pid=st.integers(0),
    start_time=st.none() | TIMES,
    process=NAMES,
    ns_pid=st.none(),
    cgroup=st.none(),
    container=st.none(),
    pod=st.none(),
)
EVENTS = st.builds(
    Event,
    time=TIMES,
    start_time=st.none() | TIMES,
    process=st.none() | NAMES,
    cookie=st.none() | st.integers(1, 2**64 - 1),
    held_by=st.none() | st.lists(st.builds(Holder), max_size=2).map(tuple),
    opener=st.none() | OPENERS,
    trees=st.just(0),
)


@given(EVENTS)
def test_an_event_can_be_read_back_from_its_json_form(event):
    assert Event.from_dict(json.loads(event.to_json())) == event


@given(EVENTS)
def test_from_dict_ignores_unknown_fields_and_sets_missing_fields_to_none(event):
    values = json.loads(event.to_json())
    del values["pod"]
    for holder in (values["opener"], *(values["held_by"] or ())):
        if holder:
            holder["new"] = 1
    assert Event.from_dict({**values, "new": 1}) == replace(event, pod=None)
