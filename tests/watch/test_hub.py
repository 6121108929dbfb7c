"""The hub with a fake engine: behaviour that the tests of PortWatcher do not cover."""

import logging
from dataclasses import replace
from threading import Thread

import pytest
from fake_engine import closing, open_socket, opening
from support import wait_until

from portwatch import PortwatchError
from portwatch.engines.choice import Choice
from portwatch.filters.kernel_filter import UNRESTRICTED
from portwatch.linux.lineage import Identity
from portwatch.model import Snapshot
from portwatch.snapshot import proc_net
from portwatch.watch.hub import Hub
from portwatch.watch.subscription import Subscription


@pytest.fixture
def hub(engine):
    hub = Hub(Choice(engine))
    yield hub
    hub.stop()


def everything(_):
    return True


def summary(events):
    return [(event.kind, event.origin, event.port) for event in events]


def wait_for_first_check(hub):
    wait_until(lambda: hub.counts.reconciliations, "the first check")


def test_listeners_that_the_first_check_finds_are_counted_and_logged(hub, monkeypatch, caplog):
    monkeypatch.setattr(proc_net, "read_all", lambda: [open_socket(1, 80).socket])
    subscribing = hub.subscribe(everything)
    with caplog.at_level(logging.DEBUG, "portwatch"):
        hub.start()
        assert summary([subscribing.wait().get(20)]) == [("open", "snapshot", 80)]
        wait_until(lambda: "a check found tcp port 80: open" in caplog.text, "the log message")
    assert hub.counts.drift == {"open": 1}


def test_a_close_found_by_the_first_check_is_reported_even_without_a_snapshot(hub, engine, monkeypatch):
    snapshots = [Snapshot((open_socket(1, 80),), {1001}), Snapshot((), set())]
    monkeypatch.setattr(engine, "snapshot", lambda: snapshots.pop(0))
    subscribing = hub.subscribe(everything, snapshot=False)
    hub.start()
    assert summary([subscribing.wait().get(20)]) == [("close", "snapshot", 80)]


def test_a_listing_before_the_first_snapshot_does_not_report_open_ports_as_found_by_a_check(hub, engine):
    engine.open_sockets = [open_socket(1, 80)]
    subscribing = hub.subscribe(everything)
    listing = Thread(target=lambda: hub.listeners(Subscription()))
    listing.start()
    wait_until(lambda: len(hub._requests) == 2, "both requests")
    hub.start()
    assert summary([subscribing.wait().get(20)]) == [("open", "snapshot", 80)]
    listing.join()


def test_wait_ready_returns_if_the_hub_is_stopped_before_it_started(hub):
    hub.stop()
    hub.wait_ready()


def test_stop_delivers_every_earlier_event(hub, engine):
    subscribing = hub.subscribe(everything)
    hub.start()
    subscription = subscribing.wait()
    wait_for_first_check(hub)
    for number in range(500):
        engine.push(opening(number, 1000 + number))
    hub.stop()
    assert len(list(iter(subscription.get, None))) == 500


def test_a_replacement_subscription_continues_where_the_replaced_one_ends(hub, engine):
    engine.open_sockets = [replace(open_socket(1, 80), trees=1)]
    subscribing = hub.subscribe(everything, roots=[Identity(1, 1)])
    hub.start()
    replaced = subscribing.wait()
    wait_for_first_check(hub)
    engine.open_sockets = [replace(open_socket(1, 80), trees=3), replace(open_socket(2, 81), trees=3)]
    replacement = hub.subscribe(everything, roots=[Identity(2, 2)], instead_of=replaced).wait()
    engine.push(closing(1, 80))
    before = list(iter(replaced.get, None))
    after = [replacement.get(20) for _ in range(4)]
    assert summary(before) == [("open", "snapshot", 80)]
    assert summary(after) == [
        ("gap", "reconcile", None),
        ("open", "snapshot", 81),
        ("open", "snapshot", 80),
        ("close", "event", 80),
    ]
    seqs = [event.seq for event in (*before, *after)]
    assert seqs == sorted(seqs)


def test_a_subscription_continues_if_its_replacement_fails(hub, engine, monkeypatch):
    subscribing = hub.subscribe(everything, roots=[Identity(1, 1)])
    hub.start()
    subscription = subscribing.wait()
    wait_for_first_check(hub)

    def fail(*_):
        raise PortwatchError("process 2 has ended")

    monkeypatch.setattr(engine, "watch", fail)
    replacing = hub.subscribe(everything, roots=[Identity(2, 2)], instead_of=subscription)
    with pytest.raises(PortwatchError, match="process 2 has ended"):
        replacing.wait()
    engine.push(replace(opening(1, 80), trees=1))
    assert subscription.get(20).port == 80


def test_a_socket_passed_into_a_tree_is_reported_by_any_later_check(hub, engine):
    subscribing = hub.subscribe(everything, roots=[Identity(1, 1)], snapshot=False)
    engine.open_sockets = [open_socket(1, 80)]
    hub.start()
    subscription = subscribing.wait()
    wait_for_first_check(hub)
    engine.open_sockets = [replace(open_socket(1, 80), trees=1)]
    hub.subscribe(everything, roots=[Identity(2, 2)]).wait()  # a new subscription starts with a check
    engine.push(closing(1, 80))
    assert summary([subscription.get(20), subscription.get(20)]) == [
        ("open", "reconcile", 80),
        ("close", "event", 80),
    ]


def test_records_are_read_while_proc_net_is_read_and_applied_after_the_merge(hub, engine, monkeypatch):
    def read_all():
        engine.push(opening(1, 80))
        wait_until(lambda: engine.is_drained, "the record to be read")
        return [open_socket(2, 90).socket]

    monkeypatch.setattr(proc_net, "read_all", read_all)
    subscribing = hub.subscribe(everything)
    hub.start()
    subscription = subscribing.wait()
    assert summary([subscription.get(20), subscription.get(20)]) == [
        ("open", "snapshot", 90),
        ("open", "event", 80),
    ]


@pytest.mark.parametrize("is_ready", [True, False], ids=["ready", "new"])
@pytest.mark.parametrize(("option", "ports"), [("roots", [80]), ("excluded_roots", [81])])
def test_records_read_before_a_tree_was_watched_are_also_filtered_by_that_tree(
    hub, engine, is_ready, option, ports
):
    if is_ready:
        hub.subscribe(everything)
        hub.start()
        wait_for_first_check(hub)
    # These records were made before the tree had a bit, so their `trees` is 0.
    engine.records_after_snapshot = [opening(1, 80), opening(2, 81)]
    engine.open_sockets = [replace(open_socket(1, 80), trees=1), open_socket(2, 81)]
    subscribing = hub.subscribe(everything, **{option: [Identity(1, 1)]})
    if not is_ready:
        hub.start()
        wait_for_first_check(hub)
    subscription = subscribing.wait()
    hub.stop()
    assert [event.port for event in iter(subscription.get, None)] == ports


def test_an_excluded_tree_is_excluded_for_one_subscription_only(hub, engine):
    subscribing = [hub.subscribe(everything), hub.subscribe(everything, excluded_roots=[Identity(1, 1)])]
    hub.start()
    unfiltered, filtered = (request.wait() for request in subscribing)
    wait_for_first_check(hub)
    assert engine.kernel_filter == UNRESTRICTED
    engine.push(replace(opening(1, 80), trees=1), opening(2, 81))
    hub.stop()
    assert [event.port for event in iter(unfiltered.get, None)] == [80, 81]
    assert [event.port for event in iter(filtered.get, None)] == [81]
