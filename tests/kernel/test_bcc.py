"""The bcc engine beside core, and what its buffers, one for each CPU, must not confuse."""

import errno
import gc
import os
import re
import struct
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace

import pytest
from support import Actor, Watch, open_files, wait_until

from portwatch.engines import perf
from portwatch.engines.bcc import compiler, headers, hooks, shared_map
from portwatch.engines.bcc.compiler import SOURCES
from portwatch.engines.bcc.engine import BccEngine
from portwatch.engines.choice import Choice
from portwatch.engines.limits import BACKLOG_CHANGE, FAILURES, LISTEN_FAILURES, MPTCP_FAILURES
from portwatch.errors import EngineUnavailable
from portwatch.event import Event
from portwatch.linux.kernel import RELEASE
from portwatch.watch.hub import Hub

SEED = 31_415
NAMESPACES = 3
PAIRS = 10_000


@pytest.fixture
def both():
    """core and bcc, at once."""
    watches = [Watch("core"), Watch("bcc")]
    yield watches
    for watch in watches:
        watch.stop()


def test_its_snapshots_are_the_kernels_where_it_has_iterators(both):
    _, bcc = both
    release = tuple(map(int, os.uname().release.split(".")[:2]))
    assert bcc.info.has_limit("ephemeral_udp") == (release < (5, 12))


def told_of_each_socket(events):
    """inode: what was told of it, in order."""
    told = defaultdict(list)
    for event in events:
        told[event.inode].append(replace(event, opener=event.opener and replace(event.opener, cgroup=None)))
    return dict(told)


def test_headers_in_the_working_directory_are_not_what_is_compiled(tmp_path, monkeypatch):
    (tmp_path / "linux").mkdir()
    for name in (*(header.name for header in SOURCES.glob("*.h")), "linux/types.h"):
        (tmp_path / name).write_text("#error not ours\n")
    monkeypatch.chdir(tmp_path)
    BccEngine().detach()
    assert os.getcwd() == str(tmp_path)


LATER = {"seq", "time", "engine", "held_by", "cgroup", "sockets"}
"""What differs by nature, or is asked for after the record, when the process may be gone."""
COMPARED = set(Event.__slots__) - LATER


def differences(core, bcc):
    return [
        (ours.kind, field, getattr(ours, field), getattr(theirs, field))
        for inode, told in core.items()
        for ours, theirs in zip(told, bcc[inode], strict=True)
        # A failure's cookie may be the one of MPTCP's own socket, or none; kprobes cannot ask for one.
        for field in COMPARED - ({"cookie"} if ours.errno or theirs.cookie is None else set())
        if getattr(ours, field) != getattr(theirs, field)
    ]


def test_core_and_bcc_tell_the_same_of_each_socket(both):
    homes = [Actor() for _ in range(NAMESPACES)]
    program = Actor(homes[0].namespace)
    try:
        program.do("import random_program")
        program.do(f"p = random_program.Program({SEED}, {[home.namespace for home in homes]})")
        program.do("p.run(1000)")
        core, bcc = (told_of_each_socket(watch.events(*homes)) for watch in both)
    finally:
        for actor in (program, *homes):
            actor.close()
    assert len(core) > 200
    assert bcc.keys() == core.keys()
    assert differences(core, bcc) == []


@pytest.mark.skipif(RELEASE > (6, 1), reason="its headers are for a later bcc than Debian 12 has")
def test_where_there_is_no_btf_the_kernels_headers_tell_the_same(monkeypatch, tmp_path, actor):
    try:
        headers.of_running_kernel()
    except EngineUnavailable as error:
        pytest.skip(f"{error}; make test-vm has them")
    monkeypatch.setattr(compiler, "VMLINUX", tmp_path / "vmlinux")
    watches = [Watch("core"), Watch("bcc")]
    try:
        actor.do("tcp = [listener(port=8080), listener('::', 8081, family=V6)]")
        actor.do("udp = bound(port=5353)")
        actor.attempt("bound(port=8080, kind=TCP)")
        actor.do("[s.close() for s in (*tcp, udp)]")
        core, bcc = (told_of_each_socket(watch.events(actor)) for watch in watches)
    finally:
        for watch in watches:
            watch.stop()
    assert len(core) == 4
    assert bcc.keys() == core.keys()
    assert differences(core, bcc) == []


ACROSS = """
import os, socket
first, second = {cpus}
for step in range({pairs}):
    os.sched_setaffinity(0, {{first}})
    s = socket.socket()
    s.bind(("127.0.0.1", 1024 + step % 50000))
    s.listen()
    os.sched_setaffinity(0, {{second}})
    s.close()
"""


def test_an_open_and_its_close_on_different_cpus_leave_no_ghost(actor):
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("there is one CPU here, and it cannot disagree with itself")
    watch = Watch("bcc", failures=False)
    try:
        actor.do(f"code = {ACROSS.format(cpus=cpus, pairs=PAIRS)!r}")
        actor.do("p = subprocess.Popen([sys.executable, '-c', code]); p.wait()")
        events = watch.events(actor)
        assert watch.gaps() == []
        assert len(events) == 2 * PAIRS
        for opened, closed in zip(events[::2], events[1::2], strict=True):
            assert (opened.kind, closed.kind, opened.cookie) == ("open", "close", closed.cookie)
            assert opened.time < closed.time
    finally:
        watch.stop()


def test_a_buffer_that_overflows_is_counted_and_put_right(actor):
    engine = BccEngine(pages=1)
    engine.attach()
    hub = Hub(Choice(engine))
    told = {}

    def hear(event):
        if event.kind == "open":
            told[event.inode] = event.port
        elif event.kind == "close":
            del told[event.inode]

    hub.subscribe(lambda event: event.netns == actor.netns, callback=hear)
    hub.start()
    hub.wait_ready()
    try:
        actor.do("made = [listener(port=port) for port in range(2000, 2500)]")
        actor.do(
            "for _ in range(4):\n"
            "    more = [listener(port=port) for port in range(3000, 3400)]\n"
            "    [s.close() for s in more]\n"
        )
        actor.do("[s.close() for s in made[:250]]")
        wait_until(lambda: engine.lost, "a loss")
        wait_until(lambda: sorted(told.values()) == list(range(2250, 2500)), "the repair")
        assert hub.counts.reconciliations["loss"]
    finally:
        hub.stop()


JUMP, CALL, EXIT, TWO_WIDE = 0x05, 0x85, 0x95, 0x18


def has_loop(code):
    """Whether some way through a program's instructions comes back to where it has been."""
    ways = []
    for index, (opcode, offset) in enumerate(struct.iter_unpack("<Bxh4x", code)):
        jumps = opcode & 7 in (5, 6) and opcode not in (CALL, EXIT)
        further = [index + 1 + offset] if jumps else []
        if opcode not in (JUMP, EXIT):
            further.append(index + 1 + (opcode == TWO_WIDE))
        ways.append(further)
    entered, left, path = {0}, set(), [0]
    while path:
        here = path[-1]
        new = next((there for there in ways[here] if there not in left), None)
        if new is None:
            left.add(path.pop())
        elif new in entered:
            return True
        else:
            entered.add(new)
            path.append(new)
    return False


def test_no_program_has_a_loop_as_verifiers_before_5_3_take_none():
    names = re.findall(r"^int (\w+)\(", (SOURCES / "bcc.bpf.c").read_text(), re.MULTILINE)
    assert len(names) > 20
    engine = BccEngine()
    try:
        looping = [name for name in names if has_loop(engine._bpf.dump_func(name.encode()))]
    finally:
        engine.detach()
    assert looping == []


def test_where_maps_cannot_be_mapped_they_are_asked(monkeypatch, actor):
    monkeypatch.setattr(shared_map, "FLAGS", 0)
    watch = Watch("bcc", pid=os.getpid())  # from whom the actor descends
    try:
        actor.do("s = listener(port=8080); s.close()")
        assert watch.kinds(actor) == ["open", "close"]
        assert watch.gaps() == []
    finally:
        watch.stop()


def test_nothing_stays_in_the_kernel_when_it_is_detached():
    before = open_files()
    for _ in range(2):
        engine = BccEngine()
        engine.attach()
        engine.detach()
    assert open_files() <= before


def test_a_function_that_this_kernel_has_not_costs_what_it_sees_and_no_more(monkeypatch, actor):
    absent = replace(hooks.FAILURE_KPROBES[0], function="inet_listen_as_no_kernel_calls_it")
    monkeypatch.setattr(hooks, "FAILURE_KPROBES", (absent, *hooks.FAILURE_KPROBES[1:]))
    engine = BccEngine()
    engine.attach()
    try:
        able = engine.info
        if able.hooks != hooks.KPROBES_NAME:
            pytest.skip(f"this kernel has no kprobes at all ({able.why}); make test-vm runs it where there are")
        assert {LISTEN_FAILURES, BACKLOG_CHANGE} <= set(able.limits)
        assert f"{absent.function} (" in able.why
        actor.do("s = listener(port=8080)")
        wait_until(lambda: actor.netns in [one.socket.netns for one in engine.read(0.1)], "the open")
    finally:
        engine.detach()


@pytest.fixture
def attached():
    """Engines that a test has attached."""
    made = []

    def attach(**options):
        made.append(BccEngine(**options))
        made[-1].attach()
        return made[-1]

    yield attach
    for engine in made:
        engine.detach()


def test_why_there_are_no_kprobes_is_said_in_the_kernels_words(attached):
    able = attached().info
    if able.hooks == hooks.KPROBES_NAME:
        pytest.skip("there are kprobes here")
    assert re.fullmatch(r"kprobes: none can sit on inet_csk_listen_stop \(.+: .+\)", able.why)


@pytest.mark.parametrize("has_mptcp", [True, False])
def test_functions_of_mptcp_are_missed_only_where_there_is_mptcp(has_mptcp, monkeypatch, tmp_path, attached):
    monkeypatch.setattr("portwatch.engines.bcc.engine.MPTCP", tmp_path if has_mptcp else tmp_path / "absent")
    monkeypatch.setattr(
        BccEngine, "_refusal_of", lambda _, probe: "is absent" if "mptcp" in probe.function else None
    )
    able = attached().info
    assert (MPTCP_FAILURES in able.limits) == has_mptcp
    assert able.why == (
        "none can sit on mptcp_listen (is absent), mptcp_bind (is absent)" if has_mptcp else None
    )


def test_without_one_of_the_tracepoints_it_says_that_it_sees_no_failures_and_keeps_none(monkeypatch, attached):
    opened = []
    really = perf.open_tracepoint

    def deny_the_third(*arguments):
        if len(opened) == 2:
            raise PermissionError(errno.EACCES, "Permission denied")
        opened.append(really(*arguments))
        return opened[-1]

    monkeypatch.setattr(BccEngine, "_attach_kprobes", lambda _: False)
    monkeypatch.setattr(perf, "open_tracepoint", deny_the_third)
    before = open_files()
    assert FAILURES in attached().info.limits
    assert not [one for one in open_files() - before if int(one[0]) in opened and "perf_event" in one[1]]


ATTACH = """
from portwatch.engines.bcc.engine import BccEngine
engine = BccEngine()
engine.attach()
engine.detach()
"""


@pytest.mark.parametrize("right", ["syslog", "ipc_lock"])
def test_it_does_without_seeing_the_kernels_symbols_and_without_locking_much(right, tmp_path):
    without = ["prlimit", "--memlock=65536", "setpriv", f"--bounding-set=-{right}", f"--inh-caps=-{right}"]
    subprocess.run([*without, sys.executable, "-c", ATTACH], cwd=tmp_path, check=True)


def test_a_cpu_that_comes_later_is_listened_to_from_the_next_check_on(monkeypatch, attached, actor):
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("there is one CPU here, and no other can come")
    monkeypatch.setattr("portwatch.engines.bcc.engine._online_cpus", lambda: cpus[:1])
    watching = attached(failures=False)

    def told():
        return [record.kind for record in watching.read_up_to_now() if record.socket.netns == actor.netns]

    actor.do(f"os.sched_setaffinity(0, {{{cpus[1]}}})")
    actor.do("s = listener(port=8080)")
    assert told() == []
    monkeypatch.setattr("portwatch.engines.bcc.engine._online_cpus", lambda: cpus)
    watching.snapshot()
    actor.do("s.close()")
    assert told() == ["close"]
    monkeypatch.setattr("portwatch.engines.bcc.engine._online_cpus", lambda: cpus[:1])
    actor.do("s = listener(port=8081)")
    watching.snapshot()
    assert told() == ["open"]


def test_an_engine_that_ends_takes_nothing_from_another(actor):
    watch = Watch("bcc", failures=False)
    try:
        for _ in range(3):
            engine = BccEngine()
            engine.attach()
            engine.detach()
            del engine
            gc.collect()
        actor.do("s = listener(port=8080); s.close()")
        assert watch.kinds(actor) == ["open", "close"]
        assert watch.gaps() == []
    finally:
        watch.stop()
