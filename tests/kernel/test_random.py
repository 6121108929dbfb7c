"""A program performs random operations while it is watched.

Whenever it pauses, the listeners that the events leave open must be those that `ss` lists.
"""

import re
import subprocess
import time

import pytest
from support import ENGINES, PATIENCE, Actor, wait_until

from portwatch.engines.bcc.engine import BccEngine
from portwatch.engines.choice import Choice
from portwatch.engines.core.engine import RING_BYTES, CoreEngine
from portwatch.engines.poll import PollEngine
from portwatch.watch.hub import Hub

SEED = 20_260
NAMESPACES = 3
OPERATIONS_BETWEEN_CHECKS = 200


def listed_by_ss(actors):
    """Return {inode: (netns, proto, port, pids)} from `ss` in each actor's namespace."""
    sockets = {}
    for actor in actors:
        lines = subprocess.run(
            ["nsenter", f"--net={actor.namespace}", "ss", "-Hlntupe"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        for line in lines:
            proto, _, _, _, local = line.split()[:5]
            inode = int(re.search(r"ino:(\d+)", line)[1])
            pids = {int(pid) for pid in re.findall(r"pid=(\d+)", line)}
            sockets[inode] = (actor.netns, proto, int(local.rpartition(":")[2]), pids)
    return sockets


class Replay:
    """Keeps the listeners that the events so far leave open, and the events that contradict earlier ones."""

    def __init__(self, namespaces):
        self._namespaces = namespaces
        self.open = {}
        self.contradictions = []
        self.gaps = 0
        self.events = 0

    def apply(self, event):
        if event.kind == "gap":
            self.gaps += 1
        if event.netns not in self._namespaces or event.kind not in ("open", "close"):
            return
        self.events += 1
        before = self.open.pop(event.inode, None)
        if event.kind == "open":
            self.open[event.inode] = event
        if (event.kind == "open") == bool(before) or (before and before.port != event.port):
            self.contradictions.append((before, event))

    def endpoints(self):
        """Return {inode: (netns, proto, port)} of the open listeners."""
        return {event.inode: (event.netns, event.proto, event.port) for event in list(self.open.values())}


def make_engine(name, loses_records):
    """Return an engine. `name` is one of ENGINES.

    If `loses_records`, the engine has a small buffer that is read slowly, so that it overflows.
    """
    name, _, hooks = name.partition("-")
    engine = {
        "core": lambda: CoreEngine(hooks=hooks or "auto", ring_bytes=4096 if loses_records else RING_BYTES),
        "bcc": lambda: BccEngine(pages=1 if loses_records else None),
        "poll": lambda: PollEngine(interval=0.05),
    }[name]()
    if loses_records:
        read = engine.read

        def read_slowly(timeout):
            time.sleep(PATIENCE / 1000)  # slow machines need a longer sleep and have a larger PATIENCE
            return read(timeout)

        engine.read = read_slowly
    return engine


def run(operations, engine, seed):
    """Run the random program and compare with `ss` at each pause. Return the hub's counts and the replay."""
    namespaces = [Actor() for _ in range(NAMESPACES)]
    program = Actor(namespaces[0].namespace)
    engine.attach()
    hub = Hub(Choice(engine))
    replay = Replay({actor.netns for actor in namespaces})
    subscribed = hub.subscribe(lambda _: True, callback=replay.apply)
    hub.start()
    subscription = subscribed.wait()
    hub.wait_ready()
    try:
        program.do("import random_program")
        program.do(f"p = random_program.Program({seed}, {[actor.namespace for actor in namespaces]})")
        for _ in range(operations // OPERATIONS_BETWEEN_CHECKS):
            program.do(f"p.run({OPERATIONS_BETWEEN_CHECKS})")
            truth = listed_by_ss(namespaces)
            expected = {inode: entry[:3] for inode, entry in truth.items()}
            wait_until(lambda expected=expected: replay.endpoints() == expected, "the events to agree with ss")
            drift = hub.counts.drift.total()
            holders = {
                listener.socket.inode: {holder.pid for holder in listener.holders}
                for listener in hub.listeners(subscription)
                if listener.socket.netns in {actor.netns for actor in namespaces}
            }
            assert holders == {inode: pids for inode, (_, _, _, pids) in truth.items()}
            if not replay.gaps:
                assert hub.counts.drift.total() == drift, (
                    "reconciliation found a change that no event had reported"
                )
        assert replay.contradictions == []
        return hub.counts, replay
    finally:
        hub.stop()
        for actor in (program, *namespaces):
            actor.close()


on_each_engine = pytest.mark.parametrize(
    ("name", "loses_records"),
    [(name, loses) for name in ENGINES for loses in (False, True) if not (loses and name == "poll")],
)


@on_each_engine
def test_at_every_pause_listeners_and_holders_equal_ss(name, loses_records):
    counts, replay = run(600, make_engine(name, loses_records), SEED)
    assert replay.events > 200
    assert bool(counts.lost) == bool(replay.gaps) == loses_records


@pytest.mark.long
@on_each_engine
def test_over_ten_thousand_operations_listeners_and_holders_equal_ss(name, loses_records):
    counts, replay = run(12_000, make_engine(name, loses_records), SEED + 1)
    assert bool(counts.lost) == bool(replay.gaps) == loses_records
