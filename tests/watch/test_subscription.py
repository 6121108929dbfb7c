"""A subscriber that falls behind gets one gap event, and then the changes that it missed.

If it missed both the open and the close of a socket, it gets neither of the two.
"""

import threading
from collections import deque
from dataclasses import replace
from itertools import count

import pytest
from fake_engine import closing, opening
from support import wait_until

from portwatch.engines.choice import Choice
from portwatch.event import Event
from portwatch.linux.lineage import Identity
from portwatch.watch.hub import Hub
from portwatch.watch.subscription import Subscription


@pytest.fixture
def hub(engine):
    hub = Hub(Choice(engine))
    hub.start()
    hub.wait_ready()
    yield hub
    hub.stop()


def everything(_):
    return True


def wait_until_published(hub, engine, *records):
    """Push records, and wait until the reader has applied them."""
    engine.push(*records)
    wait_until(lambda: engine.is_drained, "the records to be read")
    hub._call(lambda: None)


def summary(events):
    return [(event.kind, event.origin, event.port) for event in events]


def open_after(events, open_ports=()):
    """Return the ports that are open after these events, if `open_ports` were open before."""
    ports = set(open_ports)
    for event in events:
        if event.kind == "open":
            assert event.port not in ports
            ports.add(event.port)
        elif event.kind == "close":
            ports.remove(event.port)
    return ports


def test_a_subscriber_that_falls_behind_gets_a_gap_and_then_the_missed_changes(hub, engine):
    subscription = hub.subscribe(everything, capacity=3).wait()
    for number in range(1, 6):
        wait_until_published(hub, engine, opening(number, 80 + number))
    wait_until_published(hub, engine, closing(1, 81), closing(5, 85))
    assert summary(subscription.get(20) for _ in range(3)) == [("open", "event", 80 + n) for n in (1, 2, 3)]
    gap = subscription.get(20)
    assert (gap.kind, gap.lost) == ("gap", 4)
    assert summary([subscription.get(20), subscription.get(20)]) == [
        ("open", "reconcile", 84),
        ("close", "reconcile", 81),
    ]
    wait_until_published(hub, engine, opening(9, 89))
    assert summary([subscription.get(20)]) == [("open", "event", 89)]
    assert hub.counts.subscriber_drops == 4


def test_sequence_numbers_increase_across_a_gap(hub, engine):
    subscription = hub.subscribe(everything, capacity=2).wait()
    for number in range(1, 10):
        wait_until_published(hub, engine, opening(number, 80 + number))
    wait_until_published(hub, engine, closing(1, 81))
    seqs = [subscription.get(20).seq for _ in range(2 + 1 + 8)]
    assert seqs == sorted(set(seqs))


def test_the_socket_count_in_the_last_missed_change_is_the_current_count(hub, engine):
    subscription = hub.subscribe(everything, capacity=1).wait()
    wait_until_published(hub, engine, opening(1, 80), opening(2, 80), opening(3, 80), closing(1, 80))
    wait_until_published(hub, engine, closing(3, 80))
    events = [subscription.get(20) for _ in range(4)]
    assert [(event.kind, event.cookie, event.sockets) for event in events] == [
        ("open", 1, 1),
        ("gap", None, None),
        ("open", 2, 2),
        ("close", 1, 1),
    ]


def test_if_a_close_and_a_reopen_were_missed_both_are_reported(hub, engine):
    subscription = hub.subscribe(everything, capacity=1).wait()
    wait_until_published(hub, engine, opening(1, 80), closing(1, 80), opening(1, 80))
    assert [subscription.get(20).kind for _ in range(4)] == ["open", "gap", "close", "open"]


def test_a_subscription_that_ends_while_behind_still_gets_the_gap_and_missed_changes(hub, engine):
    subscription = hub.subscribe(everything, capacity=1).wait()
    wait_until_published(hub, engine, opening(1, 80), opening(2, 81), closing(1, 80))
    hub.unsubscribe(subscription)
    assert [event.kind for event in iter(subscription.get, None)] == ["open", "gap", "open", "close"]


def test_a_callback_that_falls_behind_catches_up(hub, engine):
    events, release = [], threading.Event()

    def callback(event):
        release.wait(20)
        events.append(event)

    hub.subscribe(everything, callback=callback, capacity=2).wait()
    for number in range(1, 8):
        wait_until_published(hub, engine, opening(number, 80 + number))
    release.set()
    wait_until(lambda: len(open_after(events)) == 7, "the missed opens")
    assert [event.kind for event in events].count("gap") == 1


def test_emptying_the_queue_while_an_event_is_offered_loses_no_later_event(engine):
    """Regression: no later event was delivered if a drop was counted after the queue had become empty."""
    hub = Hub(Choice(engine))
    hub.start()
    hub.wait_ready()
    subscription = hub.subscribe(everything, capacity=1).wait()
    total, events, seqs = 20_000, [], count(1)

    def read():
        while (event := subscription.get()) is not None:
            events.append(event)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(total // 100):
        engine.push(*(opening(number := next(seqs), number) for _ in range(100)))
    hub._call(lambda: None)
    wait_until(lambda: engine.is_drained, "the records to be read")
    hub.unsubscribe(subscription)
    reader.join(20)
    assert not reader.is_alive()
    hub.stop()
    assert len(open_after(events)) == total
    assert sum(event.lost for event in events if event.kind == "gap") == hub.counts.subscriber_drops


def test_a_missed_open_and_close_of_one_socket_are_not_kept():
    subscription = Subscription(capacity=0)
    for seq in range(1, 100_001):
        kind = "open" if seq % 2 else "close"
        subscription.offer(
            Event(seq, 1, kind, "event", "tcp", "ipv4", "127.0.0.1", 80, cookie=seq // 2 + seq % 2)
        )
    missed = subscription.take_missed()
    assert (missed.count, missed.changes(), missed._changes) == (100_000, [], {})


def test_records_of_a_removed_tree_do_not_reach_the_next_tree_with_its_bit(hub, engine, monkeypatch):
    monkeypatch.setattr(hub._trees, "_free", deque([1]))  # with only one bit, the next tree reuses it
    first = hub.subscribe(everything, roots=[]).wait()
    hub.watch(first, Identity(10, 1))
    engine.records_after_snapshot = [replace(opening(1, 80), trees=1)]
    hub.unwatch(first, Identity(10, 1))
    hub.watch(first, Identity(20, 1))
    hub.unsubscribe(first)
    assert [event.port for event in iter(first.get, None)] == []
