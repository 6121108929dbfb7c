"""The event stream over real connections, with subscribers that read slowly, stop reading, or disconnect."""

import asyncio
import json
import socket
from concurrent.futures import Future
from itertools import islice

import pytest
from http_server import HttpServerThread
from support import PATIENCE, wait_until

from portwatch.event import Event
from portwatch.server import stream
from portwatch.server.recent import frame_of
from portwatch.server.routes import events
from portwatch.server.stream import Stream

EVENTS = "/api/v0/events"


def event(seq, port=8080):
    return Event(seq, 1_000_000_000, "open", "event", "tcp", "ipv4", "127.0.0.1", port, exposure="loopback")


FRAME_BYTES = len(frame_of(event(1000)))


class EndlessJournal:
    """A replacement for both JournalQueries and Reader, with an unlimited number of events."""

    async def ask(self, query):
        return query(self)

    def has(self, _seq):
        return True

    def events(self, after, limit):
        return range(after + 1, after + 1 + limit)

    def event(self, seq):
        return event(seq)


class EarlierJournal(EndlessJournal):
    """A journal that has the events of an earlier run up to seq 52, and none of this run yet."""

    def events(self, after, limit):
        return range(after + 1, 53)[:limit]


class StreamServer(HttpServerThread):
    """A server of an event stream. The test publishes the events."""

    def __init__(self, **options):
        super().__init__(lambda loop: self._routes(Stream(loop, **options)))

    def _routes(self, new_stream):
        self.stream = new_stream
        return events.routes(new_stream)

    def publish(self, seqs):
        for seq in seqs:
            self.stream.publish(event(seq))

    def stop(self):
        self.loop.call_soon_threadsafe(self.stream.close)
        super().stop()


@pytest.fixture
def server():
    running = StreamServer()
    yield running
    running.stop()


@pytest.fixture
def small_limits(server, monkeypatch):
    """Lower the limits, so that a subscriber that reads slowly soon misses events."""
    monkeypatch.setattr(stream, "_UNREAD_MAX", 1 << 12)
    server.stream._recent._capacity = 200 * FRAME_BYTES


def subscribe(server, query="", small_buffer=False):
    """Subscribe. Return the connection and a file of the lines received over it."""
    subscribers_before = server.stream.subscribers
    client = server.send_request(EVENTS + query, small_buffer=small_buffer)
    lines = client.makefile("rb")
    while lines.readline() != b"retry: 1000\n":
        pass
    wait_until(lambda: server.stream.subscribers > subscribers_before, "the subscription")
    return client, lines


def received(lines):
    """Yield the received events as (seq, kind, data)."""
    for line in lines:
        if line.startswith(b"data: "):
            data = json.loads(line[6:])
            yield data["seq"], data["kind"], data


@pytest.mark.usefixtures("small_limits")
def test_a_slow_subscriber_gets_gaps_and_does_not_delay_others(server):
    slow, slow_lines = subscribe(server, small_buffer=True)
    fast, fast_lines = subscribe(server)
    fast_events = received(fast_lines)
    count = 30_000
    for seq in range(1, count + 1):
        server.stream.publish(event(seq))
        if not seq % 100:
            assert [next(fast_events)[0] for _ in range(100)] == list(range(seq - 99, seq + 1))
    last_seq = 0
    gaps = []
    for seq, kind, data in received(slow_lines):
        if kind == "gap":
            assert data["lost"] == seq - last_seq
            gaps.append(data["lost"])
        else:
            assert seq == last_seq + 1
        last_seq = seq
        if last_seq == count:
            break
    assert gaps
    assert server.stream.missed == sum(gaps)
    for file in (slow, slow_lines, fast, fast_lines):
        file.close()


def timers(server):
    """Return how many timers of the stream are scheduled."""
    count = Future()
    server.loop.call_soon_threadsafe(
        lambda: count.set_result(
            sum(getattr(timer._callback, "__self__", None) is server.stream for timer in server.loop._scheduled)
        )
    )
    return count.result(PATIENCE)


def test_all_slow_subscribers_share_one_timer(server, monkeypatch):
    monkeypatch.setattr(stream, "_UNREAD_MAX", 1 << 12)
    monkeypatch.setattr(stream, "_RETRY_INTERVAL", 0.02)
    slow, slow_lines = subscribe(server, small_buffer=True)
    server.publish(range(1, 20_000))
    wait_until(lambda: timers(server), "the timer for the slow subscriber")
    for seq in range(20_000, 20_100):
        server.stream.publish(event(seq))
        assert timers(server) <= 1
    slow_lines.close()
    slow.close()


def test_a_subscriber_that_reads_nothing_is_disconnected(server, monkeypatch):
    monkeypatch.setattr(stream, "_UNREAD_MAX", 1 << 12)
    monkeypatch.setattr(stream, "_PATIENCE", 0.2)
    client, lines = subscribe(server, small_buffer=True)
    fast, fast_lines = subscribe(server)
    server.publish(range(1, 20_000))

    def is_disconnected():
        server.stream.publish(event(server.stream.last_seq + 1))
        return server.stream.subscribers < 2

    wait_until(is_disconnected, "the subscriber to be disconnected")
    while client.recv(1 << 20):  # until the server has closed the connection
        pass
    for file in (client, lines, fast, fast_lines):
        file.close()


def test_a_subscriber_that_disconnects_is_removed_at_once(server):
    client, lines = subscribe(server)
    lines.close()
    client.close()
    wait_until(lambda: not server.stream.subscribers, "the subscriber to be removed")


def test_when_the_maximum_number_of_subscribers_is_connected_another_one_is_refused(server, monkeypatch):
    monkeypatch.setattr(stream, "SUBSCRIBERS_MAX", 1)
    client, lines = subscribe(server)
    with socket.create_connection(server.address, timeout=PATIENCE) as second:
        second.sendall(b"GET /api/v0/events HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert b" 503 " in second.recv(100)
    lines.close()
    client.close()


def test_a_quiet_stream_sends_heartbeats(server, monkeypatch):
    monkeypatch.setattr(stream, "HEARTBEAT", 0.01)
    client, lines = subscribe(server)
    assert lines.readline() == b"\n"
    assert lines.readline() == b":\n"
    lines.close()
    client.close()


def test_a_subscriber_that_reads_nothing_during_a_replay_is_disconnected(monkeypatch):
    monkeypatch.setattr(stream, "_PATIENCE", 0.2)
    server = StreamServer(first_seq=10**9, journal=EndlessJournal())
    client = server.send_request(f"{EVENTS}?after=1", small_buffer=True)
    wait_until(lambda: server.stream.subscribers, "the subscription")
    wait_until(lambda: not server.stream.subscribers, "the subscriber to be disconnected")
    client.close()
    server.stop()


def test_an_event_published_while_a_gap_is_sent_comes_after_the_gap(monkeypatch):
    server = StreamServer(first_seq=100)

    async def send(response, subscriber, data, send=stream._send):
        if b"event: gap" in data:
            server.stream.publish(event(100))
        await send(response, subscriber, data)
        await asyncio.sleep(0.01)

    monkeypatch.setattr(stream, "_send", send)
    with server.send_request(f"{EVENTS}?after=1") as client, client.makefile("rb") as lines:
        assert [seq for seq, _, _ in islice(received(lines), 2)] == [99, 100]
    server.stop()


def test_after_a_restart_a_journal_that_lags_behind_memory_causes_no_gap():
    server = StreamServer(first_seq=100, journal=EarlierJournal())
    server.publish([100, 101])
    wait_until(lambda: server.stream.last_seq == 101, "the events of this run")
    with server.send_request(f"{EVENTS}?after=50") as client, client.makefile("rb") as lines:
        events = received(lines)
        assert [(seq, kind) for seq, kind, _ in islice(events, 3)] == [
            (51, "open"),
            (52, "open"),
            (100, "open"),
        ]
        assert next(events)[0] == 101
    server.stop()


def test_a_journal_that_is_ahead_of_memory_causes_no_duplicates():
    server = StreamServer(first_seq=100, journal=EndlessJournal())
    with server.send_request(f"{EVENTS}?after=97") as client, client.makefile("rb") as lines:
        events = received(lines)
        assert [seq for seq, _, _ in islice(events, 2)] == [98, 99]
        server.stream.publish(event(100, port=81))
        assert next(events)[2]["port"] == 81
    server.stop()


@pytest.mark.usefixtures("small_limits")
def test_a_gap_for_a_subscriber_with_a_scope_has_no_number_of_missed_events(server):
    client, lines = subscribe(server, "?not_port=1", small_buffer=True)
    server.publish(range(1, 40_000))
    wait_until(lambda: server.stream.last_seq == 39_999, "the last event")
    assert next(data["lost"] for _, kind, data in received(lines) if kind == "gap") is None
    assert server.stream.missed == 0
    lines.close()
    client.close()
