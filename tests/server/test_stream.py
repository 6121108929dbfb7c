"""What the stream keeps, and how it serves those who read slowly."""

import asyncio
import json
import socket
from concurrent.futures import Future
from itertools import islice

import pytest
from http_server import HttpServerThread
from hypothesis import given
from hypothesis import strategies as st
from support import PATIENCE, wait_until

from portwatch.event import Event
from portwatch.server import stream
from portwatch.server.routes import events
from portwatch.server.stream import Recent, Stream, frame_of


def event(seq, port=8080):
    return Event(seq, 1_000_000_000, "open", "event", "tcp", "ipv4", "127.0.0.1", port, exposure="loopback")


SIZE = len(frame_of(event(1000)))


@given(st.integers(0, 60), st.integers(1, 20))
def test_what_is_kept_is_the_newest_and_is_found_by_the_seq_before_it(count, room):
    recent = Recent(room * SIZE)
    for seq in range(1, count + 1):
        recent.append(event(seq))
    kept = [entry.event.seq for entry in recent.since(recent.first)]
    assert kept == list(range(recent.dropped_seq + 1, count + 1))
    assert recent.end == count
    assert recent.last_seq == count
    for seq in range(count + 2):
        position = recent.position_after(seq)
        if recent.dropped_seq <= seq <= count:
            assert [entry.event.seq for entry in recent.since(position)] == list(range(seq + 1, count + 1))
        else:
            assert position is None


@given(st.integers(1, 200), st.integers(2, 20))
def test_what_is_kept_is_bounded(count, room):
    recent = Recent(room * SIZE)
    for seq in range(count):
        recent.append(event(seq))
        assert len(list(recent.since(recent.first))) <= room


class Endless:
    """A journal, and its reader, whose events never come to an end."""

    async def ask(self, question):
        return question(self)

    def has(self, _seq):
        return True

    def events(self, after, limit):
        return range(after + 1, after + 1 + limit)

    def event(self, seq):
        return event(seq)


EVENTS = "/api/v0/events"


class Serving(HttpServerThread):
    """A stream over real connections; events are what the test publishes."""

    def __init__(self, **options):
        super().__init__(lambda loop: self._route(Stream(loop, **options)))

    def _route(self, made):
        self.stream = made
        return events.routes(made)

    def stop(self):
        self.loop.call_soon_threadsafe(self.stream.close)
        super().stop()


@pytest.fixture
def serving():
    running = Serving()
    yield running
    running.stop()


def subscribe(serving, query="", small=False):
    """A connection that has subscribed, and what can be read of it; its buffer may be a small one."""
    others = serving.stream.subscribers
    client = serving.ask(EVENTS + query, small=small)
    lines = client.makefile("rb")
    while lines.readline() != b"retry: 1000\n":
        pass
    wait_until(lambda: serving.stream.subscribers > others, "the subscription")
    return client, lines


def told(lines):
    """The events that come, as (seq, kind, data)."""
    for line in lines:
        if line.startswith(b"data: "):
            data = json.loads(line[6:])
            yield data["seq"], data["kind"], data


def test_a_slow_reader_is_told_what_it_missed_and_costs_the_others_nothing(serving, monkeypatch):
    monkeypatch.setattr(stream, "_UNREAD_MAX", 1 << 12)
    serving.stream._recent._capacity = 200 * SIZE
    slow, slow_lines = subscribe(serving, small=True)
    quick, quick_lines = subscribe(serving)
    events = told(quick_lines)
    count = 30_000
    for seq in range(1, count + 1):
        serving.stream.publish(event(seq))
        if not seq % 100:
            assert [next(events)[0] for _ in range(100)] == list(range(seq - 99, seq + 1))
    seen = 0
    gaps = []
    for seq, kind, data in told(slow_lines):
        if kind == "gap":
            assert data["lost"] == seq - seen
            gaps.append(data["lost"])
        else:
            assert seq == seen + 1
        seen = seq
        if seen == count:
            break
    assert gaps
    assert serving.stream.missed == sum(gaps)
    for one in (slow, slow_lines, quick, quick_lines):
        one.close()


def timers(serving):
    """How many timers of the stream's own are set."""
    counted = Future()
    serving.loop.call_soon_threadsafe(
        lambda: counted.set_result(
            sum(getattr(one._callback, "__self__", None) is serving.stream for one in serving.loop._scheduled)
        )
    )
    return counted.result(PATIENCE)


def test_those_who_are_behind_are_looked_after_by_one_timer_however_many_events_come(serving, monkeypatch):
    monkeypatch.setattr(stream, "_UNREAD_MAX", 1 << 12)
    monkeypatch.setattr(stream, "_AGAIN", 0.02)
    slow, slow_lines = subscribe(serving, small=True)
    for seq in range(1, 20_000):
        serving.stream.publish(event(seq))
    wait_until(lambda: timers(serving), "the timer for the one that is behind")
    for seq in range(20_000, 20_100):
        serving.stream.publish(event(seq))
        assert timers(serving) <= 1
    slow_lines.close()
    slow.close()


def test_who_reads_nothing_at_all_is_let_go(serving, monkeypatch):
    monkeypatch.setattr(stream, "_UNREAD_MAX", 1 << 12)
    monkeypatch.setattr(stream, "_PATIENCE", 0.2)
    client, lines = subscribe(serving, small=True)
    quick, quick_lines = subscribe(serving)
    for seq in range(1, 20_000):
        serving.stream.publish(event(seq))

    def is_let_go():
        serving.stream.publish(event(serving.stream.last_seq + 1))
        return serving.stream.subscribers < 2

    wait_until(is_let_go, "the end of the one that does not read")
    while client.recv(1 << 20):  # to its end
        pass
    for one in (client, lines, quick, quick_lines):
        one.close()


def test_a_subscriber_that_leaves_is_forgotten_at_once(serving):
    client, lines = subscribe(serving)
    lines.close()
    client.close()
    wait_until(lambda: not serving.stream.subscribers, "its end")


def test_no_more_subscribers_are_taken_than_there_is_room_for(serving, monkeypatch):
    monkeypatch.setattr(stream, "SUBSCRIBERS_MAX", 1)
    client, lines = subscribe(serving)
    with socket.create_connection(serving.address, timeout=PATIENCE) as second:
        second.sendall(b"GET /api/v0/events HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert b" 503 " in second.recv(100)
    lines.close()
    client.close()


def test_a_quiet_stream_shows_that_it_lives(serving, monkeypatch):
    monkeypatch.setattr(stream, "HEARTBEAT", 0.01)
    client, lines = subscribe(serving)
    assert lines.readline() == b"\n"
    assert lines.readline() == b":\n"
    lines.close()
    client.close()


def test_who_is_sent_what_it_missed_is_a_subscriber_already_and_let_go_if_it_reads_nothing(monkeypatch):
    monkeypatch.setattr(stream, "_PATIENCE", 0.2)
    serving = Serving(first_seq=10**9, journal=Endless())
    client = serving.ask(f"{EVENTS}?after=1", small=True)
    wait_until(lambda: serving.stream.subscribers, "the subscription")
    wait_until(lambda: not serving.stream.subscribers, "its end")
    client.close()
    serving.stop()


def test_what_happens_while_a_gap_is_sent_is_told_after_it(monkeypatch):
    serving = Serving(first_seq=100)

    async def send(response, one, data, send=stream._send):
        if b"event: gap" in data:
            serving.stream.publish(event(100))
        await send(response, one, data)
        await asyncio.sleep(0.01)

    monkeypatch.setattr(stream, "_send", send)
    with serving.ask(f"{EVENTS}?after=1") as client, client.makefile("rb") as lines:
        assert [seq for seq, _, _ in islice(told(lines), 2)] == [99, 100]
    serving.stop()


def test_of_what_a_scope_may_not_have_admitted_a_gap_tells_no_number(serving, monkeypatch):
    monkeypatch.setattr(stream, "_UNREAD_MAX", 1 << 12)
    serving.stream._recent._capacity = 200 * SIZE
    client, lines = subscribe(serving, "?not_port=1", small=True)
    for seq in range(1, 40_000):
        serving.stream.publish(event(seq))
    wait_until(lambda: serving.stream.last_seq == 39_999, "the last")
    assert next(data["lost"] for _, kind, data in told(lines) if kind == "gap") is None
    assert serving.stream.missed == 0
    lines.close()
    client.close()
