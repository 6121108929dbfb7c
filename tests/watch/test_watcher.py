"""PortWatcher with a fake engine."""

import asyncio
import logging
import os
import threading
import time
from dataclasses import replace

import pytest
from fake_engine import closing, open_socket, opening
from support import wait_until

import portwatch.engines
import portwatch.watch.hub
from portwatch import EngineUnavailable, Filter, PortWatcher, PortwatchError, Scope, WrongUse, list_listeners
from portwatch.engines import choice


def fake_watcher(callback=None, **options):
    return PortWatcher(callback=callback, engine="fake", **options)


def summary(events):
    return [(event.kind, event.origin, event.port) for event in events]


def limit_threads(monkeypatch, name, is_limited):
    """While `is_limited` returns True, starting a thread with this name fails as at a limit of the system."""
    start = threading.Thread.start

    def start_within_limit(thread):
        if thread.name == name and is_limited():
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_within_limit)


def test_open_ports_come_first_then_every_change_in_order(engine):
    engine.open_sockets = [open_socket(1, 80)]
    events = []
    with fake_watcher(events.append):
        engine.push(opening(2, 81), closing(2, 81))
        engine.push(closing(1, 80))
        wait_until(lambda: len(events) == 4, "four events")
    assert summary(events) == [
        ("open", "snapshot", 80),
        ("open", "event", 81),
        ("close", "event", 81),
        ("close", "event", 80),
    ]
    assert [event.seq for event in events] == [1, 2, 3, 4]


def test_get_raises_on_timeout_and_when_the_engine_fails(engine):
    with fake_watcher() as watcher:
        with pytest.raises(TimeoutError):
            watcher.get(0.01)
        engine.push(opening(1, 80))
        assert watcher.get(20).port == 80
        engine.fail(OSError("the ring is gone"))
        with pytest.raises(PortwatchError, match="the ring is gone"):
            watcher.get()


def test_only_changes_are_reported_without_a_snapshot(engine):
    engine.open_sockets = [open_socket(1, 80)]
    events = []
    with fake_watcher(events.append, snapshot=False) as watcher:
        watcher.listeners()
        engine.push(closing(1, 80))
        wait_until(lambda: events, "an event")
    assert summary(events) == [("close", "event", 80)]


def test_stop_delivers_every_earlier_event(engine):
    events = []
    watcher = fake_watcher(events.append)
    watcher.start()
    wait_until(lambda: watcher.counts.reconciliations, "the first check")
    for number in range(500):
        engine.push(opening(number, 1000 + number))
    watcher.stop()
    assert summary(events) == [("open", "event", 1000 + number) for number in range(500)]
    assert engine.detached == 1


def test_stop_right_after_the_start_delivers_the_snapshot(engine):
    engine.open_sockets = [open_socket(1, 80)]
    events = []
    with fake_watcher(events.append):
        pass
    assert summary(events) == [("open", "snapshot", 80)]


def test_callbacks_run_in_background_threads_one_at_a_time(engine):
    threads, running, overlaps = set(), [], []

    def callback(_):
        threads.add(threading.current_thread())
        running.append(1)
        overlaps.append(len(running) > 1)
        running.pop()

    with fake_watcher(callback) as watcher:
        for number in range(300):
            engine.push(opening(number, number))
        engine.open_sockets = [open_socket(number, number) for number in range(300)]
        wait_until(lambda: len(overlaps) == 300, "300 events")
        watcher.listeners()
    assert threading.current_thread() not in threads
    assert not any(overlaps)


def test_an_exception_in_a_callback_is_logged_and_the_next_events_follow(engine, caplog):
    events = []

    def callback(event):
        events.append(event)
        if len(events) == 1:
            raise ValueError("no thanks")

    with caplog.at_level(logging.ERROR, "portwatch"), fake_watcher(callback):
        engine.push(opening(1), closing(1))
        wait_until(lambda: len(events) == 2, "the event after the exception")
    assert "a callback raised" in caplog.text
    assert "no thanks" in caplog.text


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_an_exit_in_a_callback_is_logged_and_the_next_events_follow(engine, caplog, error):
    events = []

    def callback(event):
        events.append(event)
        raise error

    with fake_watcher(callback):
        engine.push(opening(1), closing(1))
        wait_until(lambda: len(events) == 2, "the event after the exit")
    assert caplog.text.count("a callback raised") == 2


def test_a_start_that_is_interrupted_leaves_no_subscription(engine, monkeypatch):
    wait = portwatch.watch.hub.Request.wait

    def interrupt(request):
        if threading.current_thread() is threading.main_thread():  # as a KeyboardInterrupt does
            raise KeyboardInterrupt
        return wait(request)

    with fake_watcher() as watcher:
        hub = watcher._hub
        with monkeypatch.context() as patch:
            patch.setattr(portwatch.watch.hub.Request, "wait", interrupt)
            with pytest.raises(KeyboardInterrupt):
                fake_watcher(pid=os.getpid()).start()
        hub._call(lambda: None)  # requests run in order, so the subscription has ended by now
        assert (len(hub._subscriptions), engine.watched) == (1, {})


def test_a_slow_callback_does_not_delay_other_watchers(engine):
    blocked, release = threading.Event(), threading.Event()

    def slow(_):
        blocked.set()
        release.wait()

    quick = []
    with fake_watcher(slow), fake_watcher(quick.append) as watcher:
        engine.push(opening(1, 80))
        assert blocked.wait(20)
        engine.push(opening(2, 81))
        engine.open_sockets = [open_socket(1, 80), open_socket(2, 81)]
        wait_until(lambda: len(quick) == 2, "both events in the quick callback")
        assert len(watcher.listeners()) == 2
        release.set()


def test_a_watcher_can_be_stopped_from_its_own_callback(engine):
    done = threading.Event()
    watcher = fake_watcher(lambda _: (watcher.stop(), done.set()))
    watcher.start()
    engine.push(opening(1))
    assert done.wait(20)


def test_watchers_with_equal_options_share_an_engine(engine):
    first, second = [], []
    with fake_watcher(first.append), fake_watcher(second.append):
        engine.push(opening(1))
        wait_until(lambda: first and second, "the event in both callbacks")
    assert first == second
    assert (engine.attached, engine.detached) == (1, 1)


def test_a_later_watcher_starts_with_the_open_ports(engine):
    early, late = [], []
    with fake_watcher(early.append):
        engine.push(opening(1, 80))
        engine.open_sockets = [open_socket(1, 80)]
        wait_until(lambda: early, "the open")
        with fake_watcher(late.append):
            wait_until(lambda: late, "the open port")
    assert summary(late) == [("open", "snapshot", 80)]
    assert late[0].seq > early[0].seq


def test_events_are_filtered_by_scope(engine):
    events = []
    with fake_watcher(events.append, scope=Scope(port=Filter(include=((80, 90),), exclude=((85, 85),)))):
        engine.push(opening(1, 79), opening(2, 80), opening(3, 85), opening(4, 90))
        wait_until(lambda: len(events) == 2, "the two events in scope")
    assert [event.port for event in events] == [80, 90]


def test_iteration_ends_when_the_watcher_is_stopped(engine):
    with fake_watcher() as watcher:
        engine.push(opening(1), closing(1))
        kinds = []
        for event in watcher:
            kinds.append(event.kind)
            if len(kinds) == 2:
                threading.Thread(target=watcher.stop).start()
    assert kinds == ["open", "close"]


def test_iteration_starts_and_stops_the_watcher(engine):
    engine.push(opening(1))
    iterator = iter(fake_watcher())
    assert next(iterator).kind == "open"
    iterator.close()
    assert engine.detached == 1


def test_events_can_be_read_by_async_iteration(engine):
    async def take():
        engine.push(opening(1), closing(1))
        kinds = []
        async for event in fake_watcher():
            kinds.append(event.kind)
            if event.kind == "close":
                break
        return kinds

    assert asyncio.run(take()) == ["open", "close"]


def test_the_event_loop_runs_while_a_watcher_starts_and_stops(engine, monkeypatch):
    steps = {"attach": threading.Event(), "detach": threading.Event()}
    has_loop_run = []
    for name, step in steps.items():
        monkeypatch.setattr(engine, name, lambda step=step: has_loop_run.append(step.wait(5)))

    async def watch():
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, steps["attach"].set)
        async with fake_watcher():
            loop.call_later(0.05, steps["detach"].set)

    asyncio.run(watch())
    assert has_loop_run == [True, True]


def test_a_start_that_is_cancelled_leaves_nothing_started(engine, monkeypatch):
    attaching, attach = threading.Event(), threading.Event()
    monkeypatch.setattr(engine, "attach", lambda: (attaching.set(), attach.wait(20)))

    async def cancel():
        watcher = fake_watcher()
        starting = asyncio.ensure_future(watcher.__aenter__())
        await asyncio.to_thread(attaching.wait, 20)
        starting.cancel()
        await asyncio.sleep(0)
        attach.set()
        with pytest.raises(asyncio.CancelledError):
            await starting

    asyncio.run(cancel())
    assert engine.detached == 1


def test_events_that_arrive_together_wake_the_loop_once(engine):
    async def watch():
        loop = asyncio.get_running_loop()
        call = loop.call_soon_threadsafe
        async with fake_watcher() as watcher:
            events = aiter(watcher)
            first = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0.05)
            loop.call_soon_threadsafe = lambda *args: (wakes.append(args), call(*args))[1]
            engine.push(*(opening(number, number) for number in range(1, 501)))
            time.sleep(0.2)  # the loop is busy while the events arrive
            assert (await first).kind == "open"
            for _ in range(499):
                await anext(events)
            await events.aclose()

    wakes = []
    asyncio.run(watch())
    assert len(wakes) < 10


def test_async_iteration_that_was_abandoned_does_not_disturb_other_watchers(engine):
    async def first(watcher):
        return await anext(aiter(watcher))

    events = []
    with fake_watcher() as abandoned, fake_watcher(events.append):
        engine.push(opening(1))
        assert asyncio.run(first(abandoned)).kind == "open"
        assert abandoned._on_event is None
        engine.push(closing(1), opening(2), closing(2))
        wait_until(lambda: len(events) == 4, "the later events")


def test_a_failing_notification_is_logged_once_and_does_not_disturb_others(engine, caplog):
    def notify():
        raise RuntimeError("Event loop is closed")

    events = []
    with fake_watcher(events.append) as watcher:
        watcher._hub.subscribe(lambda _: True, on_event=notify).wait()
        engine.push(opening(1), closing(1))
        wait_until(lambda: len(events) == 2, "both events")
    assert caplog.text.count("a subscriber cannot be notified of events any more") == 1


def test_after_a_loss_the_missed_changes_are_reported_and_then_one_gap(engine):
    events = []
    with fake_watcher(events.append) as watcher:
        engine.push(opening(1, 80))
        wait_until(lambda: events, "the open")
        engine.open_sockets = [open_socket(2, 81)]
        engine.lose(7)
        wait_until(lambda: len(events) == 4, "the missed changes and the gap")
        assert summary(events[1:]) == [
            ("open", "reconcile", 81),
            ("close", "reconcile", 80),
            ("gap", "reconcile", None),
        ]
        assert watcher.counts.lost == events[-1].lost == 7
        assert watcher.counts.drift == {"open": 1, "close": 1}


def test_a_skipped_bpf_program_causes_a_check_but_no_gap(engine, monkeypatch):
    monkeypatch.setattr(portwatch.watch.checks, "_CHECK_AFTER_MISSES", 0.0)
    monkeypatch.setattr(portwatch.watch.checks, "_MISSES_INTERVAL", 0.0)
    events = []
    with fake_watcher(events.append) as watcher:
        engine.push(opening(1, 80))
        wait_until(lambda: events, "the open")
        engine.skip_program()
        wait_until(lambda: len(events) == 2, "the close that no record reported")
        assert summary(events[1:]) == [("close", "reconcile", 80)]
        wait_until(lambda: watcher.counts.recursion_misses == 1, "the count")
        assert watcher.counts.reconciliations["loss"] == 1


def test_a_change_during_a_check_is_reported_once_as_an_event(engine):
    events = []
    with fake_watcher(events.append) as watcher:
        watcher.listeners()
        engine.open_sockets = [open_socket(1, 80)]
        engine.records_after_snapshot = [opening(1, 80, time=9)]
        watcher.listeners()
        wait_until(lambda: events, "the open")
    assert summary(events) == [("open", "event", 80)]


def test_a_check_finds_a_lost_open_even_if_the_backlog_changes_meanwhile(engine):
    events = []
    with fake_watcher(events.append) as watcher:
        watcher.listeners()
        engine.open_sockets = [open_socket(1, 80)]
        engine.records_after_snapshot = [replace(opening(1, 80, time=9), kind="backlog")]
        watcher.listeners()
        wait_until(lambda: events, "the open")
    assert summary(events) == [("open", "reconcile", 80)]


def test_iteration_raises_the_error_of_an_engine_that_fails(engine):
    with fake_watcher() as watcher:
        engine.push(opening(1))
        engine.fail(RuntimeError("the ring is gone"))
        kinds = []
        with pytest.raises(PortwatchError, match="the ring is gone"):
            kinds.extend(event.kind for event in watcher)
    assert kinds in (["open"], [])


def test_a_watcher_with_a_callback_can_be_stopped_after_its_engine_failed(engine, caplog):
    watcher = fake_watcher(lambda _: None)
    watcher.start()
    engine.fail(RuntimeError("the ring is gone"))
    wait_until(lambda: watcher._hub.failure, "the failure")
    watcher.stop()
    assert engine.detached == 1
    assert "no more events are read" in caplog.text
    assert "the ring is gone" in caplog.text


def test_a_later_watcher_does_not_share_an_engine_that_failed(engine):
    failed = fake_watcher()
    failed.start()
    engine.fail(RuntimeError("the ring is gone"))
    wait_until(lambda: failed._hub.failure, "the failure")
    with fake_watcher() as later:
        failed.stop()
        engine.push(opening(1))
        assert later.get(20).kind == "open"
    assert (engine.attached, engine.detached) == (2, 2)


@pytest.mark.parametrize("started_before_the_limit", [0, 1])
def test_if_no_thread_can_be_started_start_says_so_and_leaves_nothing_behind(
    engine, monkeypatch, started_before_the_limit
):
    left = iter(range(started_before_the_limit))
    with monkeypatch.context() as limited:
        limit_threads(limited, "portwatch", lambda: next(left, None) is None)
        with pytest.raises(PortwatchError, match="raise the limit"):
            fake_watcher(print).start()
    assert engine.detached == engine.attached
    events = []
    with fake_watcher(events.append):
        engine.push(opening(1, 80))
        wait_until(lambda: events, "the open")


def test_a_check_that_fails_is_logged_and_repeated(engine, monkeypatch, caplog):
    monkeypatch.setattr(portwatch.watch.checks, "_RETRY_AFTER", 0.01)
    with fake_watcher(reconcile_interval=0.01) as watcher:
        wait_until(lambda: watcher.counts.reconciliations["interval"], "a check")
        engine.snapshot_error = OSError(24, "Too many open files")
        wait_until(lambda: "Too many open files" in caplog.text, "a failed check")
        engine.push(opening(1, 80))
        assert watcher.get(20).port == 80
        engine.open_sockets, engine.snapshot_error = [open_socket(2, 81)], None
        assert summary([watcher.get(20), watcher.get(20)]) == [
            ("open", "reconcile", 81),
            ("close", "reconcile", 80),
        ]


def test_a_check_for_which_no_thread_can_be_started_is_repeated(engine, monkeypatch, caplog):
    monkeypatch.setattr(portwatch.watch.checks, "_RETRY_AFTER", 0.01)
    is_limited = threading.Event()
    limit_threads(monkeypatch, "portwatch-look", is_limited.is_set)
    with fake_watcher(reconcile_interval=0.01) as watcher:
        is_limited.set()
        wait_until(lambda: "can't start new thread" in caplog.text, "a failed check")
        is_limited.clear()
        engine.open_sockets = [open_socket(1, 80)]
        assert watcher.get(20).port == 80


def test_after_a_loss_a_check_that_fails_is_repeated(engine, monkeypatch):
    monkeypatch.setattr(portwatch.watch.checks, "_RETRY_AFTER", 0.01)
    with fake_watcher() as watcher:
        wait_until(lambda: watcher.counts.reconciliations, "the first check")
        engine.snapshot_error = OSError(24, "Too many open files")
        engine.open_sockets = [open_socket(1, 80)]
        engine.lose(3)
        time.sleep(0.05)
        engine.snapshot_error = None
        assert summary([watcher.get(20), watcher.get(20)]) == [
            ("open", "reconcile", 80),
            ("gap", "reconcile", None),
        ]
        assert watcher.counts.lost == 3


def test_the_engine_is_detached_if_start_fails(engine, monkeypatch):
    def refuse(_):
        raise OSError(24, "Too many open files")

    watcher = fake_watcher(scope=Scope(port=Filter(((80, 80),))))
    monkeypatch.setattr(engine, "set_filter", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        watcher.start()
    assert engine.detached == 1


def test_the_worker_of_a_callback_ends_with_its_watcher(engine):
    with fake_watcher() as other:
        for _ in range(5):
            with fake_watcher(lambda _: None):
                pass
        engine.push(opening(1))
        wait_until(lambda: len(other._hub._workers) == 1, "the other workers to end")
        assert other.get(20).kind == "open"


@pytest.mark.usefixtures("engine")
def test_starting_twice_and_use_before_the_start_are_errors():
    watcher = fake_watcher()
    with pytest.raises(PortwatchError, match="not started"):
        watcher.listeners()
    with watcher, pytest.raises(PortwatchError, match="already started"):
        watcher.start()


def test_auto_uses_the_next_engine_if_one_is_unavailable_and_keeps_the_reason(monkeypatch, engine):
    def broken(_):
        raise EngineUnavailable("no BTF")

    monkeypatch.setattr(choice, "ENGINES", {"first": broken, "fake": lambda _: engine})
    with PortWatcher(engine="auto") as watcher:
        assert watcher.choice.engine is engine
        assert str(watcher.choice.refusals["first"]) == "no BTF"


def test_the_error_names_the_reason_of_every_engine_if_none_works(monkeypatch):
    def broken(_):
        raise EngineUnavailable("no BTF")

    monkeypatch.setattr(choice, "ENGINES", {"one": broken, "two": broken})
    with pytest.raises(EngineUnavailable, match="no engine works here: one: no BTF; two: no BTF"):
        PortWatcher().start()


def test_list_listeners_does_not_attach_the_engine(engine):
    engine.open_sockets = [open_socket(1, 80), open_socket(2, 443)]
    listeners = list_listeners(engine="fake", scope=Scope(port=Filter(include=((80, 80),))))
    assert [listener.port for listener in listeners] == [80]
    assert (engine.attached, engine.detached) == (0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "ebpf"}, "unknown engine 'ebpf': choose one of auto, core, bcc, poll"),
        ({"hooks": "nonsense"}, "unknown hooks 'nonsense': choose one of auto, fentry, stable"),
        ({"engine": "bcc", "hooks": "stable"}, "only the core engine .* the engine requested is bcc"),
        ({"engine": "poll", "hooks": "stable"}, "only the core engine .* the engine requested is poll"),
    ],
    ids=str,
)
def test_an_unknown_engine_or_hook_set_is_an_error_that_names_the_choices(options, message):
    with pytest.raises(WrongUse, match=message):
        PortWatcher(**options).start()
