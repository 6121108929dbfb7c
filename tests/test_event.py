"""Times, exposures and the one JSON form."""

import json
from dataclasses import replace

import pytest
from fake_engine import PROCESS, open_socket, opening, socket
from hypothesis import given
from hypothesis import strategies as st
from support import EVENT_FIELDS

from portwatch.addresses import exposure
from portwatch.event import Event
from portwatch.model import Holder, Process
from portwatch.timestamps import iso_time
from portwatch.watch.table import Table


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("0.0.0.0", "all"),
        ("::", "all"),
        ("127.9.9.9", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("10.1.2.3", "private"),
        ("172.31.0.1", "private"),
        ("172.32.0.1", "public"),
        ("192.168.1.1", "private"),
        ("169.254.1.1", "private"),
        ("100.64.0.1", "private"),
        ("100.128.0.1", "public"),
        ("fd00::1", "private"),
        ("fe80::1", "private"),
        ("::ffff:10.0.0.1", "private"),
        ("8.8.8.8", "public"),
        ("2001:db8::1", "public"),
    ],
)
def test_exposure_is_how_far_an_address_is_reached_from(address, expected):
    assert exposure(address) == expected


def test_times_keep_every_nanosecond_that_was_measured():
    assert iso_time(1_795_238_306_586_493_133) == "2026-11-21T05:18:26.586493133Z"
    assert iso_time(1_795_238_305_540_000_000) == "2026-11-21T05:18:25.54Z"
    assert iso_time(1_795_238_305_000_000_000) == "2026-11-21T05:18:25Z"
    assert iso_time(None) is None


def test_an_event_is_one_line_of_exactly_these_names():
    event = Event.about(
        socket(0x138A),
        PROCESS,
        seq=41,
        time=1,
        kind="open",
        origin="event",
        opener=PROCESS,
        sockets=1,
        engine="core",
    )
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


def test_a_listener_is_an_event_without_its_moment():
    table = Table("core")
    table.merge([open_socket()], 1, "snapshot")
    (listener,) = table.listeners()
    names = [name for name in EVENT_FIELDS if name not in ("seq", "kind")]
    told = json.loads(listener.to_json())
    assert list(told) == [*names, "opened", "holders"]
    event = Event.about(
        listener.socket,
        PROCESS,
        seq=1,
        time=1,
        kind="open",
        origin="snapshot",
        opener=PROCESS,
        sockets=1,
        engine="core",
    )
    assert {name: getattr(listener, name) for name in names} == {
        **{name: getattr(event, name) for name in names},
        "time": None,
    }
    assert {name: told[name] for name in names} == {name: event.as_dict()[name] for name in names} | {
        "time": None
    }
    assert listener.as_dict()["holders"] == [{**PROCESS.as_dict(), "container": None}]


def test_the_moment_of_a_listener_is_when_it_was_opened():
    table = Table("core")
    table.apply(opening(time=5_000_000_000))
    (listener,) = table.listeners()
    assert listener.time == listener.opened == 5_000_000_000
    told = listener.as_dict()
    assert told["time"] == told["opened"] == "1970-01-01T00:00:05Z"


def test_control_characters_reach_no_terminal_through_json():
    process = replace(PROCESS, process="\x1b[31m\x9b")
    line = Event.about(
        socket(),
        process,
        seq=1,
        time=1,
        kind="open",
        origin="event",
        opener=process,
        sockets=1,
        engine="core",
    ).to_json()
    assert line.isprintable()
    assert json.loads(line)["process"] == process.process


TIMES = st.integers(0, 2**63 - 1)
NAMES = st.text(max_size=16)
BARE = st.builds(Process, pid=st.integers(0), start_time=st.none() | TIMES, process=NAMES)
EVENTS = st.builds(
    Event,
    time=TIMES,
    start_time=st.none() | TIMES,
    process=st.none() | NAMES,
    cookie=st.none() | st.integers(1, 2**64 - 1),
    held_by=st.none() | st.lists(st.builds(Holder), max_size=2).map(tuple),
    opener=st.none() | BARE.map(lambda one: Process(one.pid, one.start_time, one.process, one.uid)),
    trees=st.just(0),
)


@given(EVENTS)
def test_an_event_comes_back_from_its_json_form(event):
    assert Event.from_dict(json.loads(event.to_json())) == event


@given(EVENTS)
def test_an_event_comes_back_from_a_form_that_has_more_and_less(event):
    values = json.loads(event.to_json())
    del values["pod"]
    assert Event.from_dict({**values, "new": 1}) == replace(event, pod=None)
