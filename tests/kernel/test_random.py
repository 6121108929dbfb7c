"""A random program against the tracer: whenever it rests, the table equals what `ss` says."""

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
REST_AFTER = 200


def listed_by_ss(actors):
    """inode: (netns, proto, port, pids) as `ss` has it in each namespace."""
    found = {}
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
            found[inode] = (actor.netns, proto, int(local.rpartition(":")[2]), pids)
    return found


class Told:
    """What is open by the events alone, and which of them cannot be true."""

    def __init__(self, namespaces):
        self._namespaces = namespaces
        self.open = {}
        self.untrue = []
        self.gaps = 0
        self.events = 0

    def hear(self, event):
        if event.kind == "gap":
            self.gaps += 1
        if event.netns not in self._namespaces or event.kind not in ("open", "close"):
            return
        self.events += 1
        before = self.open.pop(event.inode, None)
        if event.kind == "open":
            self.open[event.inode] = event
        if (event.kind == "open") == bool(before) or (before and before.port != event.port):
            self.untrue.append((before, event))

    def places(self):
        return {event.inode: (event.netns, event.proto, event.port) for event in list(self.open.values())}


def engine_of(name, loses):
    """An engine as the tests name it; one that `loses` reads seldom, and has little room meanwhile."""
    name, _, hooks = name.partition("-")
    engine = {
        "core": lambda: CoreEngine(hooks=hooks or "auto", ring_bytes=4096 if loses else RING_BYTES),
        "bcc": lambda: BccEngine(pages=1 if loses else None),
        "poll": lambda: PollEngine(interval=0.05),
    }[name]()
    if loses:
        read = engine.read

        def read_slowly(timeout):
            time.sleep(PATIENCE / 1000)  # where all is slow, the program under test is, too
            return read(timeout)

        engine.read = read_slowly
    return engine


def run(steps, engine, seed):
    homes = [Actor() for _ in range(NAMESPACES)]
    program = Actor(homes[0].namespace)
    engine.attach()
    hub = Hub(Choice(engine))
    told = Told({home.netns for home in homes})
    subscribing = hub.subscribe(lambda _: True, callback=told.hear)
    hub.start()
    subscription = subscribing.wait()
    hub.wait_ready()
    try:
        program.do("import random_program")
        program.do(f"p = random_program.Program({seed}, {[home.namespace for home in homes]})")
        for _ in range(steps // REST_AFTER):
            program.do(f"p.run({REST_AFTER})")
            truth = listed_by_ss(homes)
            places = {inode: entry[:3] for inode, entry in truth.items()}
            wait_until(lambda places=places: told.places() == places, "the events to say what ss says")
            drift = hub.counts.drift.total()
            mine = [
                one for one in hub.listeners(subscription) if one.socket.netns in {home.netns for home in homes}
            ]
            assert {one.socket.inode: {holder.pid for holder in one.holders} for one in mine} == {
                inode: pids for inode, (_, _, _, pids) in truth.items()
            }
            if not told.gaps:
                assert hub.counts.drift.total() == drift, "a check found what no event had told"
        assert told.untrue == []
        return hub.counts, told
    finally:
        hub.stop()
        for actor in (program, *homes):
            actor.close()


on_each_engine = pytest.mark.parametrize(
    ("name", "loses"),
    [(name, loses) for name in ENGINES for loses in (False, True) if not (loses and name == "poll")],
)


@on_each_engine
def test_at_rest_the_table_is_what_ss_says(name, loses):
    counts, told = run(600, engine_of(name, loses), SEED)
    assert told.events > 200
    assert bool(counts.lost) == bool(told.gaps) == loses


@pytest.mark.long
@on_each_engine
def test_over_ten_thousand_operations_the_table_is_what_ss_says(name, loses):
    counts, told = run(12_000, engine_of(name, loses), SEED + 1)
    assert bool(counts.lost) == bool(told.gaps) == loses
