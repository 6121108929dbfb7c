"""What PortWatcher promises, on an engine that does what the test says."""

import asyncio
import logging
import threading
import time
from dataclasses import replace
from itertools import count

import pytest
from fake_engine import closing, held, opening
from support import wait_until

import portwatch.engines
import portwatch.watch.hub
from portwatch import EngineUnavailable, Filter, PortWatcher, PortwatchError, Scope, WrongUse, list_listeners
from portwatch.engines import choice


def watching(callback=None, **options):
    return PortWatcher(callback=callback, engine="fake", **options)


def summary(events):
    return [(event.kind, event.origin, event.port) for event in events]


def test_what_is_open_comes_first_then_each_change_in_order(engine):
    engine.held = [held(1, 80)]
    seen = []
    with watching(seen.append):
        engine.push(opening(2, 81), closing(2, 81))
        engine.push(closing(1, 80))
        wait_until(lambda: len(seen) == 4, "four events")
    assert summary(seen) == [
        ("open", "snapshot", 80),
        ("open", "event", 81),
        ("close", "event", 81),
        ("close", "event", 80),
    ]
    assert [event.seq for event in seen] == [1, 2, 3, 4]


def test_get_waits_as_long_as_it_is_told(engine):
    with watching() as watcher:
        with pytest.raises(TimeoutError):
            watcher.get(0.01)
        engine.push(opening(1, 80))
        assert watcher.get(20).port == 80
        engine.fail(OSError("the ring is gone"))
        with pytest.raises(PortwatchError, match="the ring is gone"):
            watcher.get()


def test_without_snapshot_only_changes_are_told(engine):
    engine.held = [held(1, 80)]
    seen = []
    with watching(seen.append, snapshot=False) as watcher:
        watcher.listeners()
        engine.push(closing(1, 80))
        wait_until(lambda: seen, "an event")
    assert summary(seen) == [("close", "event", 80)]


def test_stop_delivers_what_happened_before_it(engine):
    seen = []
    watcher = watching(seen.append)
    watcher.start()
    wait_until(lambda: watcher.counts.reconciliations, "the look at what is open")
    for number in range(500):
        engine.push(opening(number, 1000 + number))
    watcher.stop()
    assert summary(seen) == [("open", "event", 1000 + number) for number in range(500)]
    assert engine.detached == 1


def test_stop_at_once_delivers_what_was_open(engine):
    engine.held = [held(1, 80)]
    seen = []
    with watching(seen.append):
        pass
    assert summary(seen) == [("open", "snapshot", 80)]


def test_callbacks_run_off_the_callers_thread_one_at_a_time(engine):
    threads, running, overlaps = set(), [], []

    def callback(_):
        threads.add(threading.current_thread())
        running.append(1)
        overlaps.append(len(running) > 1)
        running.pop()

    with watching(callback) as watcher:
        for number in range(300):
            engine.push(opening(number, number))
        engine.held = [held(number, number) for number in range(300)]
        wait_until(lambda: len(overlaps) == 300, "300 events")
        watcher.listeners()
    assert threading.current_thread() not in threads
    assert not any(overlaps)


def test_a_callback_that_raises_is_logged_and_the_rest_is_told(engine, caplog):
    seen = []

    def callback(event):
        seen.append(event)
        if len(seen) == 1:
            raise ValueError("no thanks")

    with caplog.at_level(logging.ERROR, "portwatch"), watching(callback):
        engine.push(opening(1), closing(1))
        wait_until(lambda: len(seen) == 2, "the event after the exception")
    assert "a callback raised" in caplog.text
    assert "no thanks" in caplog.text


def test_a_slow_callback_delays_nobody_else(engine):
    blocked, release = threading.Event(), threading.Event()

    def slow(_):
        blocked.set()
        release.wait()

    quick = []
    with watching(slow), watching(quick.append) as other:
        engine.push(opening(1, 80))
        assert blocked.wait(20)
        engine.push(opening(2, 81))
        engine.held = [held(1, 80), held(2, 81)]
        wait_until(lambda: len(quick) == 2, "the quick one to be told")
        assert len(other.listeners()) == 2
        release.set()


def test_a_watcher_can_be_stopped_from_its_own_callback(engine):
    done = threading.Event()
    watcher = watching(lambda _: (watcher.stop(), done.set()))
    watcher.start()
    engine.push(opening(1))
    assert done.wait(20)


def test_watchers_that_ask_the_same_share_an_engine(engine):
    first, second = [], []
    with watching(first.append), watching(second.append):
        engine.push(opening(1))
        wait_until(lambda: first and second, "both to be told")
    assert first == second
    assert (engine.attached, engine.detached) == (1, 1)


def test_who_comes_later_is_told_what_is_open(engine):
    early, late = [], []
    with watching(early.append):
        engine.push(opening(1, 80))
        engine.held = [held(1, 80)]
        wait_until(lambda: early, "the open")
        with watching(late.append):
            wait_until(lambda: late, "the replay")
    assert summary(late) == [("open", "snapshot", 80)]
    assert late[0].seq > early[0].seq


def test_a_scope_narrows_what_is_told(engine):
    seen = []
    with watching(seen.append, scope=Scope(port=Filter(include=((80, 90),), exclude=((85, 85),)))):
        engine.push(opening(1, 79), opening(2, 80), opening(3, 85), opening(4, 90))
        wait_until(lambda: len(seen) == 2, "the two in scope")
    assert [event.port for event in seen] == [80, 90]


def test_iteration_ends_when_the_watcher_is_stopped(engine):
    with watching() as watcher:
        engine.push(opening(1), closing(1))
        seen = []
        for event in watcher:
            seen.append(event.kind)
            if len(seen) == 2:
                threading.Thread(target=watcher.stop).start()
    assert seen == ["open", "close"]


def test_iteration_starts_and_stops_a_watcher_by_itself(engine):
    engine.push(opening(1))
    iterator = iter(watching())
    assert next(iterator).kind == "open"
    iterator.close()
    assert engine.detached == 1


def test_async_iteration(engine):
    async def take():
        engine.push(opening(1), closing(1))
        kinds = []
        async for event in watching():
            kinds.append(event.kind)
            if event.kind == "close":
                break
        return kinds

    assert asyncio.run(take()) == ["open", "close"]


def test_async_iteration_that_was_left_harms_nobody(engine):
    async def first(watcher):
        return await anext(aiter(watcher))

    seen = []
    with watching() as left, watching(seen.append):
        engine.push(opening(1))
        assert asyncio.run(first(left)).kind == "open"
        assert left._on_event is None
        engine.push(closing(1), opening(2), closing(2))
        wait_until(lambda: len(seen) == 4, "what happened since")


def test_a_reader_that_cannot_be_told_harms_nobody(engine, caplog):
    def closed():
        raise RuntimeError("Event loop is closed")

    seen = []
    with watching(seen.append) as watcher:
        watcher._hub.subscribe(lambda _: True, on_event=closed).wait()
        engine.push(opening(1), closing(1))
        wait_until(lambda: len(seen) == 2, "both events")
    assert caplog.text.count("a reader cannot be notified of events any more") == 1


def test_a_loss_is_one_gap_after_the_table_was_put_right(engine):
    seen = []
    with watching(seen.append) as watcher:
        engine.push(opening(1, 80))
        wait_until(lambda: seen, "the open")
        engine.held = [held(2, 81)]
        engine.lose(7)
        wait_until(lambda: len(seen) == 4, "the repair")
        assert summary(seen[1:]) == [
            ("open", "reconcile", 81),
            ("close", "reconcile", 80),
            ("gap", "reconcile", None),
        ]
        assert watcher.counts.lost == seen[-1].lost == 7
        assert watcher.counts.drift == {"open": 1, "close": 1}


def test_where_the_kernel_left_a_program_out_a_check_follows_and_nothing_is_said_to_be_lost(
    engine, monkeypatch
):
    monkeypatch.setattr(portwatch.watch.hub, "_CHECK_AFTER_MISSES", 0.0)
    monkeypatch.setattr(portwatch.watch.hub, "_MISSES_INTERVAL", 0.0)
    seen = []
    with watching(seen.append) as watcher:
        engine.push(opening(1, 80))
        wait_until(lambda: seen, "the open")
        engine.miss()
        wait_until(lambda: len(seen) == 2, "the close that was missed")
        assert summary(seen[1:]) == [("close", "reconcile", 80)]
        wait_until(lambda: watcher.counts.recursion_misses == 1, "the count")
        assert watcher.counts.reconciliations["loss"] == 1


def test_what_changes_during_a_check_is_told_by_its_record(engine):
    seen = []
    with watching(seen.append) as watcher:
        watcher.listeners()
        engine.held = [held(1, 80)]
        engine.during_snapshot = [opening(1, 80, time=9)]
        watcher.listeners()
        wait_until(lambda: seen, "the open")
    assert summary(seen) == [("open", "event", 80)]


def test_a_new_backlog_during_a_check_does_not_hide_an_open_that_was_lost(engine):
    seen = []
    with watching(seen.append) as watcher:
        watcher.listeners()
        engine.held = [held(1, 80)]
        engine.during_snapshot = [replace(opening(1, 80, time=9), kind="backlog")]
        watcher.listeners()
        wait_until(lambda: seen, "the open")
    assert summary(seen) == [("open", "reconcile", 80)]


def test_a_subscriber_that_falls_behind_gets_a_gap_where_it_arose(engine):
    from portwatch.engines.choice import Choice
    from portwatch.watch.hub import Hub

    hub = Hub(Choice(engine))
    hub.start()
    subscription = hub.subscribe(lambda _: True, capacity=3).wait()
    hub.wait_ready()
    numbers = count(1)
    for _ in range(5):
        engine.push(opening(next(numbers)))
    wait_until(lambda: len(list(hub._table.listeners())) == 5, "five to be open")
    hub.listeners(subscription)  # closes them all again, as the fake kernel has none open: 5 more
    assert [subscription.get().kind for _ in range(3)] == ["open"] * 3
    gap = subscription.get()
    assert (gap.kind, gap.lost) == ("gap", 7)
    engine.push(opening(99))
    assert subscription.get().cookie == 99
    hub.stop()


def test_an_engine_that_fails_ends_the_iteration_with_its_error(engine):
    with watching() as watcher:
        engine.push(opening(1))
        engine.fail(RuntimeError("the ring is gone"))
        seen = []
        with pytest.raises(PortwatchError, match="the ring is gone"):
            seen.extend(event.kind for event in watcher)
    assert seen in (["open"], [])


def test_an_engine_that_fails_is_logged_and_lets_a_callback_watcher_stop(engine, caplog):
    watcher = watching(lambda _: None)
    watcher.start()
    engine.fail(RuntimeError("the ring is gone"))
    wait_until(lambda: watcher._hub.failure, "the failure")
    watcher.stop()
    assert engine.detached == 1
    assert "no more events are read" in caplog.text
    assert "the ring is gone" in caplog.text


def test_an_engine_that_failed_is_not_given_to_who_comes_later(engine):
    failed = watching()
    failed.start()
    engine.fail(RuntimeError("the ring is gone"))
    wait_until(lambda: failed._hub.failure, "the failure")
    with watching() as later:
        failed.stop()
        engine.push(opening(1))
        assert later.get(20).kind == "open"
    assert (engine.attached, engine.detached) == (2, 2)


def test_a_check_that_fails_is_logged_and_comes_again(engine, monkeypatch, caplog):
    monkeypatch.setattr(portwatch.watch.hub, "_RETRY_AFTER", 0.01)
    with watching(reconcile_interval=0.01) as watcher:
        wait_until(lambda: watcher.counts.reconciliations["interval"], "a check")
        engine.blind = OSError(24, "Too many open files")
        wait_until(lambda: "Too many open files" in caplog.text, "a check to fail")
        engine.push(opening(1, 80))
        assert watcher.get(20).port == 80
        engine.held, engine.blind = [held(2, 81)], None
        assert summary([watcher.get(20), watcher.get(20)]) == [
            ("open", "reconcile", 81),
            ("close", "reconcile", 80),
        ]


def test_a_repair_that_fails_comes_again(engine, monkeypatch):
    monkeypatch.setattr(portwatch.watch.hub, "_RETRY_AFTER", 0.01)
    with watching() as watcher:
        wait_until(lambda: watcher.counts.reconciliations, "the look at what is open")
        engine.blind = OSError(24, "Too many open files")
        engine.held = [held(1, 80)]
        engine.lose(3)
        time.sleep(0.05)
        engine.blind = None
        assert summary([watcher.get(20), watcher.get(20)]) == [
            ("open", "reconcile", 80),
            ("gap", "reconcile", None),
        ]
        assert watcher.counts.lost == 3


def test_a_start_that_fails_leaves_nothing_behind(engine, monkeypatch):
    def refuse(_):
        raise OSError(24, "Too many open files")

    watcher = watching(scope=Scope(port=Filter(((80, 80),))))
    monkeypatch.setattr(engine, "set_filter", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        watcher.start()
    assert engine.detached == 1


def test_a_thread_that_served_a_callback_ends_with_it(engine):
    with watching() as lasting:
        for _ in range(5):
            with watching(lambda _: None):
                pass
        engine.push(opening(1))
        wait_until(lambda: len(lasting._hub._workers) == 1, "one thread to be left")
        assert lasting.get(20).kind == "open"


@pytest.mark.usefixtures("engine")
def test_starting_twice_and_asking_before_the_start_are_said():
    watcher = watching()
    with pytest.raises(PortwatchError, match="not started"):
        watcher.listeners()
    with watcher, pytest.raises(PortwatchError, match="started already"):
        watcher.start()


def test_auto_takes_the_next_engine_and_keeps_why(monkeypatch, engine):
    def broken(_):
        raise EngineUnavailable("no BTF")

    monkeypatch.setattr(choice, "ENGINES", {"first": broken, "fake": lambda _: engine})
    with PortWatcher(engine="auto") as watcher:
        assert watcher.choice.engine is engine
        assert str(watcher.choice.refusals["first"]) == "no BTF"


def test_where_no_engine_works_each_says_why(monkeypatch):
    def broken(_):
        raise EngineUnavailable("no BTF")

    monkeypatch.setattr(choice, "ENGINES", {"one": broken, "two": broken})
    with pytest.raises(EngineUnavailable, match="no engine works here: one: no BTF; two: no BTF"):
        PortWatcher().start()


def test_list_listeners_needs_no_watcher(engine):
    engine.held = [held(1, 80), held(2, 443)]
    found = list_listeners(engine="fake", scope=Scope(port=Filter(include=((80, 80),))))
    assert [one.socket.port for one in found] == [80]
    assert (engine.attached, engine.detached) == (0, 1)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"engine": "ebpf"}, "no engine 'ebpf': auto, core, bcc, poll"),
        ({"hooks": "nonsense"}, "no hooks 'nonsense': auto, fentry, stable"),
        ({"engine": "bcc", "hooks": "stable"}, "hooks are chosen for the core engine only, and bcc"),
        ({"engine": "poll", "hooks": "stable"}, "hooks are chosen for the core engine only, and poll"),
    ],
    ids=str,
)
def test_what_there_is_to_choose_from_is_said_to_who_asks_for_another(asked, said):
    with pytest.raises(WrongUse, match=said):
        PortWatcher(**asked).start()
