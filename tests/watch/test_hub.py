"""What the hub promises beside what a PortWatcher shows, on an engine that does what the test says."""

import logging
from dataclasses import replace

import pytest
from fake_engine import closing, held, opening
from support import wait_until

from portwatch import PortwatchError
from portwatch.engines.choice import Choice
from portwatch.filters.kernel_filter import UNRESTRICTED
from portwatch.linux.lineage import Identity
from portwatch.model import Snapshot
from portwatch.snapshot import proc_net
from portwatch.watch.hub import Hub


@pytest.fixture
def hub(engine):
    made = Hub(Choice(engine))
    yield made
    made.stop()


def everything(_):
    return True


def summary(events):
    return [(event.kind, event.origin, event.port) for event in events]


def test_what_the_check_at_the_start_finds_is_counted_and_logged(hub, monkeypatch, caplog):
    monkeypatch.setattr(proc_net, "read_all", lambda: [held(1, 80).socket])
    subscribing = hub.subscribe(everything)
    with caplog.at_level(logging.DEBUG, "portwatch"):
        hub.start()
        assert summary([subscribing.wait().get(20)]) == [("open", "snapshot", 80)]
        wait_until(lambda: "found open: tcp port 80" in caplog.text, "it to be logged")
    assert hub.counts.drift == {"open": 1}


def test_a_close_that_the_check_at_the_start_finds_is_told_to_who_wants_no_snapshot(hub, engine, monkeypatch):
    taken = [Snapshot((held(1, 80),), {1001}), Snapshot((), set())]
    monkeypatch.setattr(engine, "snapshot", lambda: taken.pop(0))
    subscribing = hub.subscribe(everything, snapshot=False)
    hub.start()
    assert summary([subscribing.wait().get(20)]) == [("close", "snapshot", 80)]


def test_who_waits_for_a_hub_that_is_stopped_first_waits_no_more(hub):
    hub.stop()
    hub.wait_ready()


def test_stop_tells_what_has_happened_before_it(hub, engine):
    subscribing = hub.subscribe(everything)
    hub.start()
    subscription = subscribing.wait()
    wait_until(lambda: hub.counts.reconciliations, "the look at what is open")
    for number in range(500):
        engine.push(opening(number, 1000 + number))
    hub.stop()
    assert len(list(iter(subscription.get, None))) == 500


def test_who_takes_anothers_place_goes_on_where_that_one_ends(hub, engine):
    engine.held = [replace(held(1, 80), trees=1)]
    subscribing = hub.subscribe(everything, roots=[Identity(1, 1)])
    hub.start()
    first = subscribing.wait()
    wait_until(lambda: hub.counts.reconciliations, "the look at what is open")
    engine.held = [replace(held(1, 80), trees=3), replace(held(2, 81), trees=3)]
    second = hub.subscribe(everything, roots=[Identity(2, 2)], instead_of=first).wait()
    engine.push(closing(1, 80))
    before = list(iter(first.get, None))
    after = [second.get(20) for _ in range(4)]
    assert summary(before) == [("open", "snapshot", 80)]
    assert summary(after) == [
        ("gap", "reconcile", None),
        ("open", "snapshot", 81),
        ("open", "snapshot", 80),
        ("close", "event", 80),
    ]
    seqs = [event.seq for event in (*before, *after)]
    assert seqs == sorted(seqs)


def test_where_nobody_can_take_its_place_one_goes_on(hub, engine, monkeypatch):
    subscribing = hub.subscribe(everything, roots=[Identity(1, 1)])
    hub.start()
    first = subscribing.wait()
    wait_until(lambda: hub.counts.reconciliations, "the look at what is open")

    def ended(*_):
        raise PortwatchError("process 2 has ended")

    monkeypatch.setattr(engine, "watch", ended)
    second = hub.subscribe(everything, roots=[Identity(2, 2)], instead_of=first)
    with pytest.raises(PortwatchError, match="process 2 has ended"):
        second.wait()
    engine.push(replace(opening(1, 80), trees=1))
    assert first.get(20).port == 80


def test_what_a_member_received_is_told_to_who_wants_no_snapshot_whoever_asks_for_a_look(hub, engine):
    subscribing = hub.subscribe(everything, roots=[Identity(1, 1)], snapshot=False)
    engine.held = [held(1, 80)]
    hub.start()
    subscription = subscribing.wait()
    wait_until(lambda: hub.counts.reconciliations, "the look at what is open")
    engine.held = [replace(held(1, 80), trees=1)]
    hub.subscribe(everything, roots=[Identity(2, 2)]).wait()
    engine.push(closing(1, 80))
    assert summary([subscription.get(20), subscription.get(20)]) == [
        ("open", "reconcile", 80),
        ("close", "event", 80),
    ]


def test_records_are_read_while_proc_is_looked_at_and_told_behind_it(hub, engine, monkeypatch):
    def look():
        engine.push(opening(1, 80))
        wait_until(engine._records.empty, "the engine's buffer to be emptied")
        return [held(2, 90).socket]

    monkeypatch.setattr(proc_net, "read_all", look)
    subscription = hub.subscribe(everything)
    hub.start()
    told = subscription.wait()
    assert summary([told.get(20), told.get(20)]) == [("open", "snapshot", 90), ("open", "event", 80)]


@pytest.mark.parametrize("is_ready", [True, False], ids=["ready", "new"])
@pytest.mark.parametrize(("asked", "told"), [("roots", [80]), ("excluded_roots", [81])])
def test_what_waits_unread_when_a_tree_is_asked_for_is_told_by_whose_it_is(hub, engine, is_ready, asked, told):
    if is_ready:
        hub.subscribe(everything)
        hub.start()
        wait_until(lambda: hub.counts.reconciliations, "the look at what is open")
    engine.during_snapshot = [opening(1, 80), opening(2, 81)]  # from before the kernel knew the tree
    engine.held = [replace(held(1, 80), trees=1), held(2, 81)]
    subscribing = hub.subscribe(everything, **{asked: [Identity(1, 1)]})
    if not is_ready:
        hub.start()
        wait_until(lambda: hub.counts.reconciliations, "the look at what is open")
    subscription = subscribing.wait()
    hub.stop()
    assert [event.port for event in iter(subscription.get, None)] == told


def test_a_tree_that_is_left_out_leaves_nothing_out_for_others(hub, engine):
    subscribing = [hub.subscribe(everything), hub.subscribe(everything, excluded_roots=[Identity(1, 1)])]
    hub.start()
    one, other = (each.wait() for each in subscribing)
    wait_until(lambda: hub.counts.reconciliations, "the look at what is open")
    assert engine.kernel_filter == UNRESTRICTED
    engine.push(replace(opening(1, 80), trees=1), opening(2, 81))
    hub.stop()
    assert [event.port for event in iter(one.get, None)] == [80, 81]
    assert [event.port for event in iter(other.get, None)] == [81]
