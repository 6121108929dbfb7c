"""The bcc engine: its events equal those of core and are in order, and missing kernel features are limits."""

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
from support import Actor, RecordingWatcher, open_files, wait_until

from portwatch.engines import perf
from portwatch.engines.bcc import attaching, compiler, cpu_buffers, headers, hooks, shared_map
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
    """Two watchers that run at the same time: one uses core, the other bcc."""
    watchers = [RecordingWatcher("core"), RecordingWatcher("bcc")]
    yield watchers
    for watcher in watchers:
        watcher.stop()


def test_bcc_declares_the_limit_ephemeral_udp_only_before_linux_5_12(both):
    _, bcc = both
    release = tuple(map(int, os.uname().release.split(".")[:2]))
    assert bcc.info.has_limit("ephemeral_udp") == (release < (5, 12))


def events_by_socket(events):
    """Return {inode: events in order}. The cgroup of each opener is set to None: see NOT_COMPARED."""
    by_inode = defaultdict(list)
    for event in events:
        by_inode[event.inode].append(replace(event, opener=event.opener and replace(event.opener, cgroup=None)))
    return dict(by_inode)


def test_headers_in_the_working_directory_are_not_included(tmp_path, monkeypatch):
    (tmp_path / "linux").mkdir()
    for name in (*(header.name for header in SOURCES.glob("*.h")), "linux/types.h"):
        (tmp_path / name).write_text("#error from the working directory\n")
    monkeypatch.chdir(tmp_path)
    BccEngine().detach()
    assert os.getcwd() == str(tmp_path)


NOT_COMPARED = {"seq", "time", "engine", "held_by", "cgroup", "sockets"}
"""Fields that differ between engines, and fields that are looked up later, when the process may have exited."""
COMPARED = set(Event.__slots__) - NOT_COMPARED


def differences(core, bcc):
    return [
        (by_core.kind, field, getattr(by_core, field), getattr(by_bcc, field))
        for inode, events in core.items()
        for by_core, by_bcc in zip(events, bcc[inode], strict=True)
        # Cookies are compared only if both engines have them. With kprobes, bcc has no cookies, because
        # kprobes cannot call the cookie helper. The event of a failure may have the cookie of the MPTCP socket
        # or no cookie.
        for field in COMPARED - ({"cookie"} if by_core.errno or by_bcc.cookie is None else set())
        if getattr(by_core, field) != getattr(by_bcc, field)
    ]


def test_core_and_bcc_report_the_same_events_for_each_socket(both):
    namespaces = [Actor() for _ in range(NAMESPACES)]
    program = Actor(namespaces[0].namespace)
    try:
        program.do("import random_program")
        program.do(f"p = random_program.Program({SEED}, {[actor.namespace for actor in namespaces]})")
        program.do("p.run(1000)")
        core, bcc = (events_by_socket(watcher.events(*namespaces)) for watcher in both)
    finally:
        for actor in (program, *namespaces):
            actor.close()
    assert len(core) > 200
    assert bcc.keys() == core.keys()
    assert differences(core, bcc) == []


@pytest.mark.skipif(RELEASE > (6, 1), reason="Debian 12's bcc cannot compile newer kernel headers")
def test_without_btf_bcc_uses_kernel_headers_and_reports_the_same_events(monkeypatch, tmp_path, actor):
    try:
        headers.of_running_kernel()
    except EngineUnavailable as error:
        pytest.skip(f"{error}; make test-vm runs this test with kernel headers")
    monkeypatch.setattr(compiler, "VMLINUX", tmp_path / "vmlinux")
    watchers = [RecordingWatcher("core"), RecordingWatcher("bcc")]
    try:
        actor.do("tcp = [listener(port=8080), listener('::', 8081, family=V6)]")
        actor.do("udp = bound(port=5353)")
        actor.attempt("bound(port=8080, kind=TCP)")
        actor.do("[s.close() for s in (*tcp, udp)]")
        core, bcc = (events_by_socket(watcher.events(actor)) for watcher in watchers)
    finally:
        for watcher in watchers:
            watcher.stop()
    assert len(core) == 4
    assert bcc.keys() == core.keys()
    assert differences(core, bcc) == []


ACROSS_CPUS = """
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


def test_opens_and_closes_on_different_cpus_stay_in_order(actor):
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    watch = RecordingWatcher("bcc", failures=False)
    try:
        actor.do(f"code = {ACROSS_CPUS.format(cpus=cpus, pairs=PAIRS)!r}")
        actor.do("p = subprocess.Popen([sys.executable, '-c', code]); p.wait()")
        events = watch.events(actor)
        assert watch.gaps() == []
        assert len(events) == 2 * PAIRS
        for opened, closed in zip(events[::2], events[1::2], strict=True):
            assert (opened.kind, closed.kind, opened.cookie) == ("open", "close", closed.cookie)
            assert opened.time < closed.time
    finally:
        watch.stop()


def test_lost_records_are_counted_and_reconciliation_reports_the_missed_changes(actor):
    engine = BccEngine(pages=1)
    engine.attach()
    hub = Hub(Choice(engine))
    open_ports = {}

    def apply(event):
        if event.kind == "open":
            open_ports[event.inode] = event.port
        elif event.kind == "close":
            del open_ports[event.inode]

    hub.subscribe(lambda event: event.netns == actor.netns, callback=apply)
    hub.start()
    hub.wait_ready()
    try:
        actor.do("socks = [listener(port=port) for port in range(2000, 2500)]")
        actor.do(
            "for _ in range(4):\n"
            "    more = [listener(port=port) for port in range(3000, 3400)]\n"
            "    [s.close() for s in more]\n"
        )
        actor.do("[s.close() for s in socks[:250]]")
        wait_until(lambda: engine.lost, "a lost record")
        wait_until(lambda: sorted(open_ports.values()) == list(range(2250, 2500)), "the missed changes")
        assert hub.counts.reconciliations["loss"]
    finally:
        hub.stop()


JUMP, CALL, EXIT, LOAD_IMM64 = 0x05, 0x85, 0x95, 0x18


def has_loop(code):
    """Return True if a depth-first search finds a cycle in the control flow of a BPF program."""
    successors = []
    for index, (opcode, offset) in enumerate(struct.iter_unpack("<Bxh4x", code)):
        jumps = opcode & 7 in (5, 6) and opcode not in (CALL, EXIT)
        targets = [index + 1 + offset] if jumps else []
        if opcode not in (JUMP, EXIT):
            targets.append(index + 1 + (opcode == LOAD_IMM64))  # this instruction takes two slots
        successors.append(targets)
    entered, finished, path = {0}, set(), [0]
    while path:
        following = next((target for target in successors[path[-1]] if target not in finished), None)
        if following is None:
            finished.add(path.pop())
        elif following in entered:
            return True
        else:
            entered.add(following)
            path.append(following)
    return False


def test_no_bpf_program_has_a_loop_because_kernels_before_5_3_reject_loops():
    names = re.findall(r"^int (\w+)\(", (SOURCES / "bcc.bpf.c").read_text(), re.MULTILINE)
    assert len(names) > 20
    engine = BccEngine()
    try:
        looping = [name for name in names if has_loop(engine._programs.bpf.dump_func(name.encode()))]
    finally:
        engine.detach()
    assert looping == []


def test_maps_that_cannot_be_memory_mapped_are_read_by_syscall(monkeypatch, actor):
    monkeypatch.setattr(shared_map, "FLAGS", 0)
    watch = RecordingWatcher("bcc", pid=os.getpid())  # the actor is a child of this process
    try:
        actor.do("s = listener(port=8080); s.close()")
        assert watch.kinds(actor) == ["open", "close"]
        assert watch.gaps() == []
    finally:
        watch.stop()


def test_detaching_closes_every_descriptor():
    before = open_files()
    for _ in range(2):
        engine = BccEngine()
        engine.attach()
        engine.detach()
    assert open_files() <= before


def test_a_missing_kernel_function_adds_limits_but_other_events_are_still_reported(monkeypatch, actor):
    absent = replace(hooks.FAILURE_KPROBES[0], function="inet_listen_which_no_kernel_has")
    monkeypatch.setattr(hooks, "FAILURE_KPROBES", (absent, *hooks.FAILURE_KPROBES[1:]))
    engine = BccEngine()
    engine.attach()
    try:
        info = engine.info
        if info.hooks != hooks.KPROBES_NAME:
            pytest.skip(f"this kernel has no kprobes ({info.why}); make test-vm has kernels with them")
        assert {LISTEN_FAILURES, BACKLOG_CHANGE} <= set(info.limits)
        assert f"{absent.function} (" in info.why
        actor.do("s = listener(port=8080)")
        wait_until(lambda: actor.netns in [record.socket.netns for record in engine.read(0.1)], "the open")
    finally:
        engine.detach()


@pytest.fixture
def attach_engine():
    """A function that attaches a bcc engine and returns it. The engine is detached after the test."""
    engines = []

    def attach(**options):
        engines.append(BccEngine(**options))
        engines[-1].attach()
        return engines[-1]

    yield attach
    for engine in engines:
        engine.detach()


def test_if_kprobes_cannot_be_attached_the_reason_quotes_the_kernels_error(attach_engine):
    info = attach_engine().info
    if info.hooks == hooks.KPROBES_NAME:
        pytest.skip("this kernel has kprobes")
    assert re.fullmatch(r"kprobes: cannot attach to inet_csk_listen_stop \(.+: .+\)", info.why)


@pytest.mark.parametrize("has_mptcp", [True, False])
def test_missing_mptcp_functions_are_a_limit_only_if_the_kernel_has_mptcp(
    has_mptcp, monkeypatch, tmp_path, attach_engine
):
    monkeypatch.setattr(attaching, "MPTCP", tmp_path if has_mptcp else tmp_path / "absent")
    monkeypatch.setattr(
        attaching, "_refusal_of", lambda _, probe: "is absent" if "mptcp" in probe.function else None
    )
    info = attach_engine().info
    assert (MPTCP_FAILURES in info.limits) == has_mptcp
    assert info.why == (
        "cannot attach to mptcp_listen (is absent), mptcp_bind (is absent)" if has_mptcp else None
    )


def test_if_one_tracepoint_cannot_be_opened_the_others_are_closed_and_failures_are_a_limit(
    monkeypatch, attach_engine
):
    opened = []
    open_tracepoint = perf.open_tracepoint

    def refuse_kprobes(*_):
        raise EngineUnavailable("there are no kprobes")

    def deny_the_third(*arguments):
        if len(opened) == 2:
            raise PermissionError(errno.EACCES, "Permission denied")
        opened.append(open_tracepoint(*arguments))
        return opened[-1]

    monkeypatch.setattr(attaching, "_attach_kprobes", refuse_kprobes)
    monkeypatch.setattr(perf, "open_tracepoint", deny_the_third)
    before = open_files()
    assert FAILURES in attach_engine().info.limits
    assert not [fd for fd, target in open_files() - before if int(fd) in opened and "perf_event" in target]


ATTACH = """
from portwatch.engines.bcc.engine import BccEngine
engine = BccEngine()
engine.attach()
engine.detach()
"""


@pytest.mark.parametrize("capability", ["syslog", "ipc_lock"])
def test_bcc_attaches_without_cap_syslog_or_cap_ipc_lock_and_with_a_low_memlock_limit(capability, tmp_path):
    restrict = [
        "prlimit",
        "--memlock=65536",
        "setpriv",
        f"--bounding-set=-{capability}",
        f"--inh-caps=-{capability}",
    ]
    subprocess.run([*restrict, sys.executable, "-c", ATTACH], cwd=tmp_path, check=True)


def test_records_of_a_cpu_that_comes_online_later_are_read_after_the_next_snapshot(
    monkeypatch, attach_engine, actor
):
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    monkeypatch.setattr(cpu_buffers, "online_cpus", lambda: cpus[:1])
    engine = attach_engine(failures=False)

    def kinds():
        return [record.kind for record in engine.read_up_to_now() if record.socket.netns == actor.netns]

    actor.do(f"os.sched_setaffinity(0, {{{cpus[1]}}})")
    actor.do("s = listener(port=8080)")
    assert kinds() == []
    monkeypatch.setattr(cpu_buffers, "online_cpus", lambda: cpus)
    engine.snapshot()
    actor.do("s.close()")
    assert kinds() == ["close"]
    monkeypatch.setattr(cpu_buffers, "online_cpus", lambda: cpus[:1])
    actor.do("s = listener(port=8081)")
    engine.snapshot()
    assert kinds() == ["open"]


def test_detaching_one_engine_does_not_affect_another(actor):
    watch = RecordingWatcher("bcc", failures=False)
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
