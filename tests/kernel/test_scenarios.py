"""The contract of exactness, case by case: each test is a row, under its number."""

import contextlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from limits import allowed, kernel_functions
from support import CORE_HOOKS, has_mptcp, wait_until

from portwatch.engines.poll import PollEngine
from portwatch.linux import netns


def test_an_engine_lacks_what_it_must_here_and_nothing_else(watch):
    here = watch.info
    assert {limit.name for limit in here.limits} == allowed(here.engine, here.hooks)
    if here.engine == "bcc":
        assert (here.hooks == "kprobes") == ("register_kprobe" in kernel_functions()), here.why


def lines(events):
    return [(event.kind, event.proto, event.family, event.address, event.port) for event in events]


def assert_one_open_and_close(watch, actor, place, **fields):
    """Exactly one open, with all that belongs to it, and one close of the same socket."""
    opened, closed = watch.events(actor)
    assert (opened.kind, opened.proto, opened.family, opened.address, opened.port) == ("open", *place)
    assert (closed.kind, closed.proto, closed.family, closed.address, closed.port) == ("close", *place)
    assert opened.cookie == closed.cookie
    assert (opened.cookie is None) <= watch.info.has_limit("cookies")
    for event in (opened, closed):
        assert (event.pid, event.start_time, event.process, event.uid) == (
            actor.pid,
            actor.start_time,
            actor.process,
            0,
        )
        assert event.netns == actor.netns
        assert event.opener.pid == actor.pid
        assert event.origin == "event"
    for name, value in fields.items():
        assert getattr(opened, name) == value, name
    assert (opened.sockets, closed.sockets) == (1, 0)


def test_s01_tcp_v4(watch, actor):
    actor.do("s = listener(port=8080, backlog=5)")
    inode = actor.do("os.fstat(s.fileno()).st_ino")
    watch.settle()
    actor.do("s.close()")
    assert_one_open_and_close(
        watch, actor, ("tcp", "ipv4", "127.0.0.1", 8080), backlog=5, inode=inode, exposure="loopback"
    )


@pytest.mark.parametrize("v6only", [False, True])
def test_s02_tcp_v6_says_whether_v4_reaches_it_too(watch, actor, v6only):
    actor.do(f"s = listener('::', 8080, family=V6, options=[(41, 26, {int(v6only)})])")
    watch.settle()
    actor.do("s.close()")
    assert_one_open_and_close(
        watch, actor, ("tcp", "ipv6", "::", 8080), v6only=v6only, exposure="all", mptcp=False
    )


def test_s03_listen_without_bind_shows_the_real_port(watch, actor):
    actor.do("s = socket.socket(); s.listen()")
    port = actor.do("s.getsockname()[1]")
    watch.settle()
    actor.do("s.close()")
    assert port
    assert_one_open_and_close(watch, actor, ("tcp", "ipv4", "0.0.0.0", port))


def test_s04_a_second_listen_changes_the_backlog_only(watch, actor):
    actor.do("s = listener(port=8080, backlog=5)")
    watch.settle()
    actor.do("s.listen(50)")
    assert watch.kinds(actor) == ["open"]
    (listener,) = watch.listeners(actor)
    assert listener.socket.backlog == 50


def test_s04_a_changed_backlog_is_seen_without_asking_the_kernel(watch, actor):
    actor.do("s = listener(port=8080, backlog=5)")
    watch.settle()
    actor.do("s.listen(50)")
    if watch.info.has_limit("backlog_change"):
        watch.listeners(actor)
    actor.do("s.close()")
    assert [event.backlog for event in watch.events(actor)] == [5, 50]


def test_s05_the_second_of_two_listens_on_one_port_fails(watch, actor):
    actor.do("made = [socket.socket(), socket.socket()]")
    actor.do("[s.setsockopt(1, 2, 1) for s in made]; [s.bind(('127.0.0.1', 8080)) for s in made]")
    actor.do("made[0].listen()")
    watch.settle()
    assert "Address already in use" in actor.attempt("made[1].listen()")["error"]
    watch.settle()
    actor.do("made[1].close(); made[0].close()")
    if watch.info.has_limit("failures"):
        assert watch.kinds(actor) == ["open", "close"]
        return
    opened, failed, closed = watch.events(actor)
    assert (opened.kind, failed.kind, closed.kind) == ("open", "listen_failed", "close")
    assert (failed.errno, failed.port, failed.pid) == ("EADDRINUSE", 8080, actor.pid)
    assert failed.inode != opened.inode == closed.inode
    assert [(one.pid, one.why) for one in failed.held_by] == [(actor.pid, "listening")]


def test_a_listen_on_what_cannot_listen_is_no_failure_of_a_port(watch, actor):
    actor.do("s = bound(port=5353)")
    assert "not supported" in actor.attempt("s.listen()")["error"]
    assert watch.kinds(actor) == ["open"]


WAYS_TO_HOLD_A_PORT = {
    "listening": "s = listener(port=8080)",
    "bound": "s = bound(port=8080, kind=TCP)",
    "connected": "t = listener(port=9090); s = bound(port=8080, kind=TCP); s.connect(('127.0.0.1', 9090))",
}


@pytest.mark.parametrize("why", WAYS_TO_HOLD_A_PORT)
def test_s06_a_failed_bind_says_who_holds_the_port(watch, actor, make_actor, why):
    actor.do(WAYS_TO_HOLD_A_PORT[why])
    loser = make_actor(actor.namespace)
    assert "Address already in use" in loser.attempt("bound(port=8080, kind=TCP)")["error"]
    if watch.info.has_limit("failures"):
        assert "bind_failed" not in watch.kinds(actor)
        return
    (failed,) = [event for event in watch.events(actor) if event.kind == "bind_failed"]
    assert (failed.errno, failed.address, failed.port) == ("EADDRINUSE", "127.0.0.1", 8080)
    assert (failed.pid, failed.start_time) == (loser.pid, loser.start_time)
    (holder,) = failed.held_by
    if why == "bound" and watch.info.has_limit("bound_holders"):
        assert (holder.pid, holder.process, holder.why) == (None, None, "unknown")
        return
    assert (holder.pid, holder.process, holder.why) == (actor.pid, actor.process, why)


WAYS_TO_PASS_A_PORT_ON = {
    "fork, and exit": """
def begin():
    s = listener(port=8080)
    if os.fork() == 0:
        signal.alarm(300)  # nobody is left to end it
        os.write(tell, str(os.getpid()).encode())
        time.sleep(600)
told, tell = os.pipe()
flash(begin)
holder = int(os.read(told, 20))
""",
    "SCM_RIGHTS": """
here, there = socket.socketpair()
holder = fork_child() or receive(there)
s = listener(port=8080)
socket.send_fds(here, [b"x"], [s.fileno()])
here.recv(1)
s.close()
""",
    "exec": """
holder = fork_child()
if holder == 0:
    s = listener(port=8080)
    s.set_inheritable(True)
    os.execvp("sleep", ["sleep", "600"])
while open(f"/proc/{holder}/comm").read() != "sleep\\n":
    time.sleep(0.001)
""",
}


@pytest.mark.parametrize("way", WAYS_TO_PASS_A_PORT_ON)
def test_s06_the_holder_is_who_has_the_port_by_then(watch, actor, make_actor, way):
    actor.do(WAYS_TO_PASS_A_PORT_ON[way])
    holder = actor.do("holder")
    watch.settle()
    loser = make_actor(actor.namespace)
    assert "error" in loser.attempt("bound(port=8080, kind=TCP)")
    events = watch.events(actor)
    name = Path(f"/proc/{holder}/comm").read_text().strip()
    os.kill(holder, signal.SIGKILL)
    if watch.info.has_limit("failures"):
        assert "bind_failed" not in [event.kind for event in events]
        return
    (failed,) = [event for event in events if event.kind == "bind_failed"]
    assert [(one.pid, one.process, one.why) for one in failed.held_by] == [(holder, name, "listening")]


def test_s06_a_udp_port_too(watch, actor, make_actor):
    actor.do("s = bound(port=5300)")
    loser = make_actor(actor.namespace)
    assert "error" in loser.attempt("bound(port=5300)")
    if watch.info.has_limit("failures"):
        assert watch.kinds(actor) == ["open"]
        return
    (failed,) = [event for event in watch.events(actor) if event.kind == "bind_failed"]
    assert failed.proto == "udp"
    assert [(one.pid, one.why) for one in failed.held_by] == [(actor.pid, "bound")]


def test_s06_a_connection_in_time_wait(watch, actor):
    actor.do("s = listener(port=8080); c = socket.create_connection(('127.0.0.1', 8080)); a = s.accept()[0]")
    actor.do("s.close(); a.close(); c.close()")
    assert "error" in actor.attempt("listener(port=8080)")
    if watch.info.has_limit("failures"):
        assert told_open(watch.events(actor)) == []
        return
    (failed,) = [event for event in watch.events(actor) if event.kind == "bind_failed"]
    assert [(one.pid, one.why) for one in failed.held_by] == [(None, "time_wait")]


def test_s07_a_bind_without_the_right(watch, actor):
    actor.do("os.seteuid(65534)")
    assert "Permission denied" in actor.attempt("listener(port=80)")["error"]
    if watch.info.has_limit("failures"):
        assert watch.kinds(actor) == []
        return
    (failed,) = watch.events(actor)
    assert (failed.kind, failed.errno, failed.port, failed.pid) == ("bind_failed", "EACCES", 80, actor.pid)
    assert failed.held_by is None


def test_s08_shutdown_and_listen_again(watch, actor):
    actor.do("s = listener(port=8080)")
    watch.settle()
    for step in ("s.shutdown(socket.SHUT_RD)", "s.listen()", "s.close()"):
        actor.do(step)
        watch.settle()
    assert lines(watch.events(actor)) == [
        (kind, "tcp", "ipv4", "127.0.0.1", 8080) for kind in ("open", "close", "open", "close")
    ]


def test_s08_an_autobound_listener_that_listens_again_gets_another_port(watch, actor):
    ports = []
    actor.do("s = socket.socket()")
    for _ in range(2):
        actor.do("s.listen()")
        ports += [actor.do("s.getsockname()[1]")] * 2
        watch.settle()
        actor.do("s.shutdown(socket.SHUT_RD)")
        watch.settle()
    assert [event.port for event in watch.events(actor)] == ports
    assert watch.kinds(actor) == ["open", "close"] * 2


def test_s09_sigkill_closes_in_the_name_of_the_killed(watch, actor):
    actor.do("s = listener(port=8080)")
    watch.settle()
    actor.kill()
    _, closed = watch.events(actor)
    assert (closed.kind, closed.pid, closed.start_time) == ("close", actor.pid, actor.start_time)
    assert closed.process == actor.process


def test_s10_a_forked_child_keeps_the_port(watch, actor):
    actor.do("s = listener(port=8080)")
    watch.settle()
    actor.do("child = fork(lambda: None)")
    child = actor.do("child")
    actor.do("s.close()")
    assert watch.kinds(actor) == ["open"]
    (listener,) = watch.listeners(actor)
    assert [holder.pid for holder in listener.holders] == [child]
    assert listener.owner.pid == child
    actor.do("kill(child)")
    _, closed = watch.events(actor)
    assert (closed.kind, closed.pid, closed.opener.pid) == ("close", child, actor.pid)


def test_s11_duplicates_are_one_listener_until_the_last(watch, actor):
    actor.do("s = listener(port=8080); copies = [os.dup(s.fileno()), os.dup2(s.fileno(), 200)]")
    watch.settle()
    actor.do("s.close(); os.close(copies[0])")
    assert watch.kinds(actor) == ["open"]
    actor.do("os.close(200)")
    assert watch.kinds(actor) == ["open", "close"]


def test_s12_a_descriptor_sent_to_another_process(watch, actor):
    actor.do("here, there = socket.socketpair()")
    actor.do("received, told = os.pipe()")
    actor.do("def receive():\n    globals()['got'] = socket.recv_fds(there, 1, 1)\n    os.write(told, b'x')")
    actor.do("def later():\n    threading.Thread(target=receive, daemon=True).start()")
    receiver = actor.do("fork(later)")
    actor.do("s = listener(port=8080); socket.send_fds(here, [b'x'], [s.fileno()]); os.read(received, 1)")
    watch.settle()
    actor.do("s.close()")
    assert watch.kinds(actor) == ["open"]
    (listener,) = watch.listeners(actor)
    assert listener.opener.pid == actor.pid
    assert [holder.pid for holder in listener.holders] == [receiver]
    actor.do(f"kill({receiver})")
    assert watch.kinds(actor) == ["open", "close"]


def test_s13_reuseport_counts_the_sockets_of_a_port(watch, actor):
    actor.do("made = []")
    for _ in range(8):
        actor.do("made.append(listener(port=8080, options=[(1, 15, 1)]))")
    watch.settle()
    for _ in range(8):
        actor.do("made.pop().close()")
        watch.settle()
    events = watch.events(actor)
    assert [event.kind for event in events] == ["open"] * 8 + ["close"] * 8
    assert len({event.inode for event in events}) == 8
    expected = [*range(1, 9), *range(7, -1, -1)]
    if watch.info.engine == "poll":  # one poll finds several, in no order
        assert [event.sockets for event in events][-1] == 0
    else:
        assert [event.sockets for event in events] == expected


needs_mptcp = pytest.mark.skipif(
    not has_mptcp(), reason="this kernel has no MPTCP, or sysctl net.mptcp.enabled=0"
)


@needs_mptcp
@pytest.mark.parametrize(("family", "address", "name"), [("V4", "127.0.0.1", "ipv4"), ("V6", "::1", "ipv6")])
def test_s14_mptcp_as_go_listens(watch, actor, family, address, name):
    actor.do(f"s = listener({address!r}, 8080, family={family}, proto=262)")
    inode = actor.do("os.fstat(s.fileno()).st_ino")
    watch.settle()
    actor.do("s.close()")
    assert_one_open_and_close(watch, actor, ("tcp", name, address, 8080), mptcp=True, inode=inode)


@needs_mptcp
def test_s14_the_backlog_of_mptcp_is_the_one_of_its_last_listen(watch, actor):
    actor.do("s = listener(port=8080, backlog=5, proto=262)")
    assert [one.socket.backlog for one in watch.listeners(actor)] == [5]
    actor.do("s.listen(50)")
    assert [one.socket.backlog for one in watch.listeners(actor)] == [50]
    actor.do("s.listen(20); s.close()")
    if not watch.info.has_limit("backlog_change"):
        assert [event.backlog for event in watch.events(actor)] == [5, 20]


@needs_mptcp
@pytest.mark.starts_engine
def test_s14_mptcp_open_before_the_tracer(watch, actor):
    actor.do("s = listener(port=8080, proto=262)")
    late = watch.another(failures=False)
    try:
        assert [event.origin for event in late.events(actor)] == ["snapshot"]
        actor.do("s.close()")
        assert late.kinds(actor) == ["open", "close"]
    finally:
        late.stop()


@pytest.mark.parametrize(("family", "address", "name"), [("V4", "127.0.0.1", "ipv4"), ("V6", "::1", "ipv6")])
def test_s15_udp(watch, actor, family, address, name):
    actor.do(f"s = bound({address!r}, 5300, family={family})")
    watch.settle()
    actor.do("s.close()")
    assert_one_open_and_close(watch, actor, ("udp", name, address, 5300), backlog=None)


def test_a_raw_socket_is_no_port_of_its_protocol(watch, actor):
    actor.do("s = socket.socket(V4, socket.SOCK_RAW, socket.IPPROTO_UDP); s.bind(('127.0.0.1', 0))")
    assert watch.listeners(actor) == []
    actor.do("s.close()")
    assert watch.kinds(actor) == []


def test_s16_udp_clients_are_not_listeners(watch, actor):
    actor.do("s = bound(port=5300)")
    watch.settle()
    actor.do("c = socket.socket(V4, UDP); c.connect(('127.0.0.1', 5300)); c.send(b'x')")
    actor.do("d = socket.socket(V4, UDP); d.sendto(b'x', ('127.0.0.1', 5300))")
    port = actor.do("d.getsockname()[1]")
    watch.settle()
    actor.do("c.close()")
    listed = sorted(one.socket.port for one in watch.listeners(actor))  # which sock_diag is asked for, too
    actor.do("d.close()")
    if watch.info.has_limit("ephemeral_udp"):
        # What has not connected passes for a listener, at the next check at the latest.
        assert listed == sorted([5300, port])
        assert [one.socket.port for one in watch.listeners(actor)] == [5300]
        assert [(event.kind, event.port) for event in watch.events(actor)] == [
            ("open", 5300),
            ("open", port),
            ("close", port),
        ]
    else:
        assert listed == [5300]
        assert watch.kinds(actor) == ["open"]


@pytest.mark.starts_engine
def test_s16_ports_that_the_kernel_chose_are_shown_when_asked_for(watch, actor):
    asked = watch.another(ephemeral=True)
    try:
        actor.do("s = bound()")
        asked.settle()
        actor.do("s.close()")
        assert asked.kinds(actor) == ["open", "close"]
        actor.do("d = socket.socket(V4, UDP); d.sendto(b'x', ('127.0.0.1', 5300))")
        port = actor.do("d.getsockname()[1]")
        if not watch.info.has_limit("udp_autobind"):
            assert asked.kinds(actor) == ["open", "close", "open"]
        assert [one.socket.port for one in asked.listeners(actor)] == [port]
    finally:
        asked.stop()


def test_s17_a_bound_udp_socket_that_connects_is_closed_to_others(watch, actor):
    at_once = not watch.info.has_limit("udp_connect")  # else by the next check
    actor.do("t = bound(port=5301); s = bound(port=5300)")
    watch.settle()
    actor.do("s.connect(('127.0.0.1', 5301))")
    if at_once:
        assert watch.kinds(actor) == ["open", "open", "close"]
    assert [one.socket.port for one in watch.listeners(actor)] == [5301]
    actor.do("disconnect(s)")
    if at_once:
        assert watch.kinds(actor) == ["open", "open", "close", "open"]
    assert sorted(one.socket.port for one in watch.listeners(actor)) == [5300, 5301]
    events = [event for event in watch.events(actor) if event.port == 5300]
    assert [event.kind for event in events] == ["open", "close", "open"]
    actor.do("s.close()")
    assert watch.kinds(actor).count("close") == 2


def test_s18_one_port_in_two_namespaces_is_two_listeners(watch, make_actor):
    first, second = make_actor(), make_actor()
    for one in (first, second):
        one.do("s = listener(port=8080)")
    events = watch.events(first, second)
    assert [(event.kind, event.port, event.sockets) for event in events] == [("open", 8080, 1)] * 2
    assert {event.netns for event in events} == {first.netns, second.netns}
    assert len({event.inode for event in events}) == 2


def test_s18_the_namespace_is_the_sockets_not_the_process(watch, make_actor):
    first, second = make_actor(), make_actor()
    first.do("s = socket.socket()")
    first.do(f"enter({second.namespace!r})")
    first.do("s.bind(('127.0.0.1', 8080)); s.listen()")
    if watch.info.has_limit("empty_namespaces"):
        assert watch.listeners(first) == []
        # Events tell of it, until a check does not find it.
        assert watch.kinds(first, second) == ([] if watch.engine == "poll" else ["open", "close"])
        return
    (opened,) = watch.events(first, second)
    assert opened.netns == first.netns
    watch.listeners(first)  # and a check of every namespace leaves it so
    assert watch.kinds(first, second) == ["open"]


@pytest.fixture
def container_cgroup():
    """A cgroup named as docker names a container's."""
    mount = next(
        (
            line.split()[4]
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if " - cgroup2 " in line
        ),
        None,
    )
    if not mount:
        pytest.skip("no cgroup v2 is mounted in which a container could be played")
    name = "ab" * 32
    path = Path(mount) / f"docker-{name}.scope"
    path.mkdir()
    yield path, name
    with contextlib.suppress(OSError):
        wait_until(lambda: not (path / "cgroup.procs").read_text(), "the cgroup to be empty")
    path.rmdir()


def test_a_namespace_is_entered_when_the_process_that_showed_it_has_ended(actor, make_actor):
    first = make_actor(actor.namespace)
    (shown,) = (one for one in netns.all_namespaces() if one.inode == actor.netns)
    shown = replace(shown, path=first.namespace)
    first.kill()
    with netns.entered(shown):
        assert os.stat("/proc/thread-self/ns/net").st_ino == actor.netns


def test_who_looks_into_a_namespace_moves_no_other_thread(actor):
    (shown,) = (one for one in netns.all_namespaces() if one.inode == actor.netns)
    with ThreadPoolExecutor(1) as other:
        before = other.submit(netns.own).result()
        with netns.entered(shown):
            assert netns.own().inode == actor.netns
            assert other.submit(netns.own).result() == before


def test_s19_a_container_has_two_pids_and_an_id(watch, make_actor, container_cgroup):
    path, name = container_cgroup
    contained = make_actor(prefix=("unshare", "--pid", "--fork", "--kill-child"))
    (path / "cgroup.procs").write_text(str(contained.pid))
    contained.do("s = listener(port=8080)")
    (opened,) = watch.events(contained)
    assert (opened.pid, opened.ns_pid) == (contained.pid, 1)
    assert opened.container == name
    contained.close()


@pytest.mark.starts_engine
def test_s20_open_before_the_tracer(watch, actor):
    actor.do("s = listener(port=8080); u = bound(port=5300)")
    late = watch.another(failures=False)
    try:
        events = late.events(actor)
        assert sorted((event.kind, event.port, event.origin, event.pid) for event in events) == [
            ("open", 5300, "snapshot", actor.pid),
            ("open", 8080, "snapshot", actor.pid),
        ]
        actor.do("s.close(); u.close()")
        assert late.kinds(actor) == ["open", "open", "close", "close"]
    finally:
        late.stop()


@pytest.mark.starts_engine
def test_s21_what_changes_while_the_snapshot_is_taken(watch, actor):
    actor.do("made = {}; stop = threading.Event()")
    actor.do(
        "def storm():\n"
        "    step = 0\n"
        "    while not stop.is_set():\n"
        "        port = 1024 + step * 7919 % 200\n"
        "        if port in made: made.pop(port).close()\n"
        "        else:\n"
        "            try: made[port] = listener(port=port)\n"
        "            except OSError: pass\n"  # the snapshot holds a file while it looks, so its port too
        "        step += 1\n"
        "        time.sleep(0.0001)\n"
    )
    for _ in range(5):
        actor.do("stop.clear(); t = threading.Thread(target=storm); t.start()")
        late = watch.another(ephemeral=True)
        try:
            late.watcher._hub.wait_ready()
            actor.do("stop.set(); t.join()")
            assert told_open(late.events(actor)) == actor.do("sorted(made)")
            assert late.gaps() == []
        finally:
            late.stop()


def test_s21_what_only_a_snapshot_of_polls_showed_is_closed_when_it_has_gone(actor):
    engine = PollEngine()
    engine.attach()
    try:
        actor.do("s = listener(port=8080)")
        engine.snapshot()
        actor.do("s.close()")
        told = [one for one in engine.read_up_to_now() if one.socket.netns == actor.netns]
        assert [record.kind for record in told] == ["open", "close"]
    finally:
        engine.detach()


def told_open(events):
    """The ports that are open by what was told; no close without an open, no two opens in a row."""
    still_open = {}
    for event in events:
        if event.kind == "open":
            assert event.inode not in still_open
            still_open[event.inode] = event.port
        elif event.kind == "close":
            assert still_open.pop(event.inode) == event.port
    return sorted(still_open.values())


def test_s22_gone_before_anybody_looks(watch, actor):
    code = "import socket; s = socket.create_server(('127.0.0.1', 8080)); s.close()"
    actor.do(f"p = subprocess.Popen([sys.executable, '-c', {code!r}]); p.wait()")
    pid = actor.do("p.pid")
    if watch.info.has_limit("short_lived"):
        assert told_open(watch.events(actor)) == []
        return
    opened, closed = watch.events(actor)
    assert [(event.kind, event.port, event.pid) for event in (opened, closed)] == [
        ("open", 8080, pid),
        ("close", 8080, pid),
    ]
    assert opened.process.startswith("python")
    assert opened.time < closed.time


def test_s23_a_thread_listens_in_the_name_of_its_process(watch, actor):
    actor.do("def run():\n    libc.prctl(PR_SET_NAME, b'thread')\n    globals()['s'] = listener(port=8080)")
    actor.do("t = threading.Thread(target=run); t.start(); t.join()")
    watch.settle()
    actor.do("s.close()")
    assert_one_open_and_close(watch, actor, ("tcp", "ipv4", "127.0.0.1", 8080))


def test_s24_after_exec_the_owner_is_the_new_program(watch, actor):
    actor.do("s = listener(port=8080); os.set_inheritable(s.fileno(), True)")
    watch.settle()
    actor.do("p = subprocess.Popen(['sleep', '600'], close_fds=False); s.close()")
    child = actor.do("p.pid")
    wait_until(lambda: Path(f"/proc/{child}/comm").read_text() == "sleep\n", "the exec")
    (listener,) = watch.listeners(actor)
    assert (listener.owner.pid, listener.owner.process) == (child, "sleep")
    assert (listener.opener.pid, listener.opener.process) == (actor.pid, actor.process)
    actor.do("p.kill(); p.wait()")
    closed = watch.events(actor)[-1]
    assert (closed.kind, closed.pid, closed.process) == ("close", child, "sleep")


def test_s24_a_program_that_is_handed_a_listener_and_who_activates_it_hold_it_both(watch, actor):
    actor.do("s = listener(port=8080); os.set_inheritable(s.fileno(), True)")
    watch.settle()
    actor.do("p = subprocess.Popen(['sleep', '600'], close_fds=False)")
    child = actor.do("p.pid")
    wait_until(lambda: Path(f"/proc/{child}/comm").read_text() == "sleep\n", "the exec")
    (listener,) = watch.listeners(actor)
    assert {(one.pid, one.process) for one in listener.holders} == {
        (actor.pid, actor.process),
        (child, "sleep"),
    }
    assert listener.opener.pid == actor.pid
    actor.do("p.kill(); p.wait()")
    (listener,) = watch.listeners(actor)
    assert [one.pid for one in listener.holders] == [actor.pid]
    assert watch.kinds(actor) == ["open"]


def test_s25_accepted_connections_are_no_event(watch, actor):
    actor.do("s = listener(port=8080)")
    for _ in range(20):
        actor.do("c = socket.create_connection(('127.0.0.1', 8080)); a = s.accept()[0]; c.close(); a.close()")
    assert watch.kinds(actor) == ["open"]
    watch.listeners(actor)
    assert watch.kinds(actor) == ["open"]


def test_s26_a_pid_that_is_used_again_is_another_process(watch, actor):
    last_pid = Path("/proc/sys/kernel/ns_last_pid")
    if not last_pid.exists():
        pytest.skip("this kernel lets nobody choose the next pid (CONFIG_CHECKPOINT_RESTORE)")
    actor.do("first = fork(lambda: globals().update(s=listener(port=8080)))")
    pid = actor.do("first")
    watch.settle()
    actor.do("kill(first)")
    time.sleep(0.03)  # the start of a process is told to the tick of 10 ms
    actor.do(
        "def again():\n"
        "    for attempt in range(200):\n"
        "        with open('/proc/sys/kernel/ns_last_pid', 'w') as file: file.write(str(first - 1))\n"
        "        child = fork(lambda: os.getpid() == first and globals().update(s=listener(port=8081)))\n"
        "        if child == first: return child\n"
        "        kill(child)\n"
    )
    assert actor.do("again()") == pid
    watch.settle()
    actor.do("kill(first)")
    events = watch.events(actor)
    assert [(event.kind, event.port, event.pid) for event in events] == [
        ("open", 8080, pid),
        ("close", 8080, pid),
        ("open", 8081, pid),
        ("close", 8081, pid),
    ]
    starts = [event.start_time for event in events]
    assert starts[0] == starts[1] < starts[2] == starts[3]


def test_s27_the_kernels_own_socket_is_listed_without_owner(watch, actor):
    actor.do("ip('link', 'add', 'vx0', 'type', 'vxlan', 'id', '1', 'dstport', '4789', 'local', '127.0.0.1')")
    actor.do("ip('link', 'set', 'vx0', 'up')")
    (listener,) = [one for one in watch.listeners(actor) if one.socket.port == 4789]
    assert listener.socket.proto == "udp"
    assert listener.holders == ()
    assert listener.opener is None
    actor.do("ip('link', 'del', 'vx0')")
    assert not [one for one in watch.listeners(actor) if one.socket.port == 4789]


def test_s27_a_descriptor_on_its_way_is_held_by_nobody(watch, actor):
    actor.do("here, there = socket.socketpair()")
    actor.do("s = listener(port=8080); socket.send_fds(here, [b'x'], [s.fileno()]); s.close()")
    (listener,) = watch.listeners(actor)
    assert (listener.socket.port, listener.holders) == (8080, ())
    assert listener.opener is None or listener.opener.pid == actor.pid
    actor.do("[os.close(fd) for fd in socket.recv_fds(there, 1, 1)[1]]")
    assert watch.kinds(actor) == ["open", "close"]


def test_s28_io_uring(watch, actor):
    if not actor.do("has_uring_bind()"):
        pytest.skip("this kernel has no bind and listen in io_uring (6.11 and later have)")
    actor.do("s = uring_listener(8080)")
    watch.settle()
    actor.do("s.close()")
    assert_one_open_and_close(watch, actor, ("tcp", "ipv4", "127.0.0.1", 8080), backlog=7)


def test_s29_the_device_that_a_listener_is_bound_to(watch, actor):
    actor.do("s = listener(port=8080, options=[(1, 25, b'lo\\0')])")
    watch.settle()
    actor.do("s.close()")
    assert_one_open_and_close(watch, actor, ("tcp", "ipv4", "127.0.0.1", 8080), device="lo")


def test_s29_a_link_local_address_has_its_scope(watch, actor):
    actor.do("ip('link', 'add', 'left', 'type', 'veth', 'peer', 'name', 'right')")
    actor.do("ip('link', 'set', 'left', 'up'); ip('link', 'set', 'right', 'up')")
    actor.do("ip('-6', 'addr', 'add', 'fe80::77/64', 'dev', 'left', 'nodad')")
    actor.do("s = socket.socket(V6); s.bind(('fe80::77', 8080, 0, socket.if_nametoindex('left'))); s.listen()")
    watch.settle()
    (listener,) = watch.listeners(actor)
    assert (listener.socket.device, listener.socket.address) == ("left", "fe80::77")
    actor.do("s.close()")
    assert_one_open_and_close(
        watch, actor, ("tcp", "ipv6", "fe80::77", 8080), device="left", exposure="private"
    )


def test_s30_the_uid_is_the_one_of_the_call(watch, actor):
    actor.do("s = socket.socket(); s.bind(('127.0.0.1', 8080)); os.setresuid(65534, 65534, 0); s.listen()")
    watch.settle()
    actor.do("os.setresuid(0, 0, 0); s.close()")
    opened, closed = watch.events(actor)
    assert (opened.uid, closed.opener.uid) == (65534, 65534)
    if not watch.info.has_limit("actor"):
        assert closed.uid == 0


SETUID = """
import os, socket
s = socket.create_server(("127.0.0.1", 8080))
print(*os.getresuid(), flush=True)
input()
"""


def test_s30_of_a_setuid_program_it_is_the_uid_of_who_runs_it(watch, make_actor):
    actor = make_actor(prefix=("unshare", "--mount", "--fork", "--kill-child"))
    actor.do("subprocess.run(['mount', '-t', 'tmpfs', '-o', 'mode=755', 'tmpfs', '/mnt'], check=True)")
    actor.do("shutil.copy(os.path.realpath(sys.executable), '/mnt/python'); os.chmod('/mnt/python', 0o4755)")
    actor.do(
        f"p = subprocess.Popen(['/mnt/python', '-c', {SETUID!r}], user=65534,"
        " stdin=subprocess.PIPE, stdout=subprocess.PIPE)"
    )
    assert actor.do("p.stdout.readline().decode()") == "65534 0 0\n"
    watch.settle()
    actor.do("_ = p.communicate(b'x')")
    opened, closed = watch.events(actor)
    assert (opened.uid, closed.opener.uid) == (65534, 65534)
    if not watch.info.has_limit("actor"):
        assert closed.uid == 65534


STORM = """
import socket
for step in range({pairs}):
    s = socket.socket()
    s.bind(("127.0.0.1", 1024 + step % 50000))
    s.listen()
    s.close()
"""


def test_s31_a_storm_loses_nothing(watch, actor):
    pairs = 20_000
    actor.do(f"storm = {STORM.format(pairs=pairs)!r}")
    before = len(watch.gaps())
    actor.do("p = subprocess.Popen([sys.executable, '-c', storm]); p.wait()")
    events = watch.events(actor)
    assert len(watch.gaps()) == before
    assert watch.listeners(actor) == []
    if watch.info.has_limit("short_lived"):
        assert told_open(events) == []
        return
    assert len(events) == 2 * pairs
    for opened, closed in zip(events[::2], events[1::2], strict=True):
        assert (opened.kind, closed.kind) == ("open", "close")
        assert (opened.inode, opened.port) == (closed.inode, closed.port)


def gaps(events):
    return [event for event in list(events) if event.kind == "gap"]


@pytest.mark.parametrize("hooks", CORE_HOOKS)
def test_a_storm_that_overflows_is_counted_and_put_right(actor, hooks):
    from portwatch.engines.choice import Choice
    from portwatch.engines.core.engine import CoreEngine
    from portwatch.watch.hub import Hub

    engine = CoreEngine(ring_bytes=4096, hooks=hooks)
    engine.attach()
    hub = Hub(Choice(engine))
    seen = []
    hub.subscribe(lambda event: event.netns in (None, actor.netns), callback=seen.append)
    hub.start()
    try:
        actor.do("made = [listener(port=port) for port in range(2000, 3000)]")
        actor.do("[s.close() for s in made[:500]]")
        wait_until(lambda: hub.counts.lost and not hub.counts.lost < engine.lost, "a loss")
        wait_until(lambda: told_open(list(seen)) == list(range(2500, 3000)), "the repair")
        wait_until(
            lambda: sum(event.lost for event in gaps(seen)) == hub.counts.lost, "the gap, which comes last"
        )
        assert hub.counts.reconciliations["loss"] == len(gaps(seen))
        assert any(event.origin == "reconcile" for event in seen)
    finally:
        hub.stop()


def test_connections_cost_the_reader_nothing(actor):
    from portwatch.engines.core.engine import CoreEngine

    engine = CoreEngine()
    engine.attach()
    try:
        actor.do("s = listener(port=8080)")
        for _ in range(20):
            actor.do("c = socket.create_connection(('127.0.0.1', 8080)); s.accept()[0].close(); c.close()")
        records = [one for one in engine.read_up_to_now() if one.socket.netns == actor.netns]
        assert [one.kind for one in records] == ["open"]
    finally:
        engine.detach()
