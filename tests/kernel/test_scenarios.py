"""Scenarios that every engine must report exactly, except where it declares a limit.

The prefix `test_sNN_` is the number of a scenario in the table that scripts/kernels_table.py writes.
All scenarios are in one module, because each module starts every engine once. In an emulated machine, bcc takes
more than a minute to start.
"""

import os
import signal
import time
from pathlib import Path

import pytest
from limits import expected_limits, kernel_functions
from support import has_mptcp, replay, wait_until

from portwatch.engines.poll import PollEngine


def test_an_engine_has_exactly_the_limits_expected_on_this_kernel(watch):
    info = watch.info
    assert {limit.name for limit in info.limits} == expected_limits(info.engine, info.hooks)
    if info.engine == "bcc":
        assert (info.hooks == "kprobes") == ("register_kprobe" in kernel_functions()), info.why


def endpoints(events):
    """Return the kind and the endpoint of each event."""
    return [(event.kind, event.proto, event.family, event.address, event.port) for event in events]


def assert_one_open_and_close(watch, actor, endpoint, **fields):
    """Check that the actor's only events are an open and a close of one socket, with all fields correct.

    `endpoint` is (proto, family, address, port). `fields` are further fields that the open must have.
    """
    opened, closed = watch.events(actor)
    assert endpoints([opened, closed]) == [("open", *endpoint), ("close", *endpoint)]
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


def test_s01_tcp_over_ipv4_is_one_open_and_one_close(watch, actor):
    actor.do("s = listener(port=8080, backlog=5)")
    inode = actor.do("os.fstat(s.fileno()).st_ino")
    watch.wait_for_delivery()
    actor.do("s.close()")
    assert_one_open_and_close(
        watch, actor, ("tcp", "ipv4", "127.0.0.1", 8080), backlog=5, inode=inode, exposure="loopback"
    )


@pytest.mark.parametrize("v6only", [False, True])
def test_s02_an_event_about_tcp_over_ipv6_says_whether_the_socket_is_dual_stack(watch, actor, v6only):
    actor.do(f"s = listener('::', 8080, family=V6, options=[(41, 26, {int(v6only)})])")
    watch.wait_for_delivery()
    actor.do("s.close()")
    assert_one_open_and_close(
        watch, actor, ("tcp", "ipv6", "::", 8080), v6only=v6only, exposure="all", mptcp=False
    )


def test_s03_listen_without_bind_reports_the_port_that_the_kernel_chose(watch, actor):
    actor.do("s = socket.socket(); s.listen()")
    port = actor.do("s.getsockname()[1]")
    watch.wait_for_delivery()
    actor.do("s.close()")
    assert port
    assert_one_open_and_close(watch, actor, ("tcp", "ipv4", "0.0.0.0", port))


def test_s04_a_second_listen_changes_only_the_backlog(watch, actor):
    actor.do("s = listener(port=8080, backlog=5)")
    watch.wait_for_delivery()
    actor.do("s.listen(50)")
    assert watch.kinds(actor) == ["open"]
    (listener,) = watch.listeners(actor)
    assert listener.socket.backlog == 50


def test_s04_a_changed_backlog_is_reported_in_the_close(watch, actor):
    actor.do("s = listener(port=8080, backlog=5)")
    watch.wait_for_delivery()
    actor.do("s.listen(50)")
    if watch.info.has_limit("backlog_change"):
        watch.listeners(actor)
    actor.do("s.close()")
    assert [event.backlog for event in watch.events(actor)] == [5, 50]


def test_s05_a_second_listen_on_a_port_is_a_listen_failed_event(watch, actor):
    actor.do("socks = [socket.socket(), socket.socket()]")
    actor.do("[s.setsockopt(1, 2, 1) for s in socks]; [s.bind(('127.0.0.1', 8080)) for s in socks]")
    actor.do("socks[0].listen()")
    watch.wait_for_delivery()
    assert "Address already in use" in actor.attempt("socks[1].listen()")["error"]
    watch.wait_for_delivery()
    actor.do("socks[1].close(); socks[0].close()")
    if watch.info.has_limit("failures"):
        assert watch.kinds(actor) == ["open", "close"]
        return
    opened, failed, closed = watch.events(actor)
    assert (opened.kind, failed.kind, closed.kind) == ("open", "listen_failed", "close")
    assert (failed.errno, failed.port, failed.pid) == ("EADDRINUSE", 8080, actor.pid)
    assert failed.inode != opened.inode == closed.inode
    assert [(holder.pid, holder.why) for holder in failed.held_by] == [(actor.pid, "listening")]


def test_listen_on_a_udp_socket_is_not_reported_as_a_failure(watch, actor):
    actor.do("s = bound(port=5353)")
    assert "not supported" in actor.attempt("s.listen()")["error"]
    assert watch.kinds(actor) == ["open"]


WAYS_TO_HOLD_A_PORT = {
    "listening": "s = listener(port=8080)",
    "bound": "s = bound(port=8080, kind=TCP)",
    "connected": "t = listener(port=9090); s = bound(port=8080, kind=TCP); s.connect(('127.0.0.1', 9090))",
}


@pytest.mark.parametrize("why", WAYS_TO_HOLD_A_PORT)
def test_s06_a_failed_bind_reports_the_holder_of_the_port(watch, actor, make_actor, why):
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


WAYS_TO_PASS_ON_A_PORT = {
    "fork, and exit": """
def begin():
    s = listener(port=8080)
    if os.fork() == 0:
        signal.alarm(300)  # in case the test fails before it kills this process
        os.write(write_end, str(os.getpid()).encode())
        time.sleep(600)
read_end, write_end = os.pipe()
run_in_child(begin)
holder = int(os.read(read_end, 20))
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


@pytest.mark.parametrize("way", WAYS_TO_PASS_ON_A_PORT)
def test_s06_a_failed_bind_names_the_current_holder_of_a_port_that_was_passed_on(watch, actor, make_actor, way):
    actor.do(WAYS_TO_PASS_ON_A_PORT[way])
    holder_pid = actor.do("holder")
    watch.wait_for_delivery()
    loser = make_actor(actor.namespace)
    assert "error" in loser.attempt("bound(port=8080, kind=TCP)")
    events = watch.events(actor)
    name = Path(f"/proc/{holder_pid}/comm").read_text().strip()
    os.kill(holder_pid, signal.SIGKILL)
    if watch.info.has_limit("failures"):
        assert "bind_failed" not in [event.kind for event in events]
        return
    (failed,) = [event for event in events if event.kind == "bind_failed"]
    assert [(holder.pid, holder.process, holder.why) for holder in failed.held_by] == [
        (holder_pid, name, "listening")
    ]


def test_s06_a_failed_udp_bind_reports_the_holder_of_the_port(watch, actor, make_actor):
    actor.do("s = bound(port=5300)")
    loser = make_actor(actor.namespace)
    assert "error" in loser.attempt("bound(port=5300)")
    if watch.info.has_limit("failures"):
        assert watch.kinds(actor) == ["open"]
        return
    (failed,) = [event for event in watch.events(actor) if event.kind == "bind_failed"]
    assert failed.proto == "udp"
    assert [(holder.pid, holder.why) for holder in failed.held_by] == [(actor.pid, "bound")]


def test_s06_a_failed_bind_reports_a_connection_in_time_wait(watch, actor):
    actor.do("s = listener(port=8080); c = socket.create_connection(('127.0.0.1', 8080)); a = s.accept()[0]")
    actor.do("s.close(); a.close(); c.close()")
    assert "error" in actor.attempt("listener(port=8080)")
    if watch.info.has_limit("failures"):
        assert replay(watch.events(actor)) == []
        return
    (failed,) = [event for event in watch.events(actor) if event.kind == "bind_failed"]
    assert [(holder.pid, holder.why) for holder in failed.held_by] == [(None, "time_wait")]


def test_s07_a_bind_without_permission_is_a_bind_failed_event(watch, actor):
    actor.do("os.seteuid(65534)")
    assert "Permission denied" in actor.attempt("listener(port=80)")["error"]
    if watch.info.has_limit("failures"):
        assert watch.kinds(actor) == []
        return
    (failed,) = watch.events(actor)
    assert (failed.kind, failed.errno, failed.port, failed.pid) == ("bind_failed", "EACCES", 80, actor.pid)
    assert failed.held_by is None


def test_s08_a_shutdown_is_reported_as_a_close_and_a_new_listen_as_an_open(watch, actor):
    actor.do("s = listener(port=8080)")
    watch.wait_for_delivery()
    for step in ("s.shutdown(socket.SHUT_RD)", "s.listen()", "s.close()"):
        actor.do(step)
        watch.wait_for_delivery()
    assert endpoints(watch.events(actor)) == [
        (kind, "tcp", "ipv4", "127.0.0.1", 8080) for kind in ("open", "close", "open", "close")
    ]


def test_s08_an_autobound_listener_is_reported_with_its_new_port_when_it_listens_again(watch, actor):
    ports = []
    actor.do("s = socket.socket()")
    for _ in range(2):
        actor.do("s.listen()")
        ports += [actor.do("s.getsockname()[1]")] * 2
        watch.wait_for_delivery()
        actor.do("s.shutdown(socket.SHUT_RD)")
        watch.wait_for_delivery()
    assert [event.port for event in watch.events(actor)] == ports
    assert watch.kinds(actor) == ["open", "close"] * 2


def test_s09_a_close_by_sigkill_is_attributed_to_the_killed_process(watch, actor):
    actor.do("s = listener(port=8080)")
    watch.wait_for_delivery()
    actor.kill()
    _, closed = watch.events(actor)
    assert (closed.kind, closed.pid, closed.start_time) == ("close", actor.pid, actor.start_time)
    assert closed.process == actor.process


def test_s10_a_port_stays_open_while_a_forked_child_holds_it(watch, actor):
    actor.do("s = listener(port=8080)")
    watch.wait_for_delivery()
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


def test_s11_a_port_is_closed_when_its_last_duplicated_descriptor_is_closed(watch, actor):
    actor.do("s = listener(port=8080); copies = [os.dup(s.fileno()), os.dup2(s.fileno(), 200)]")
    watch.wait_for_delivery()
    actor.do("s.close(); os.close(copies[0])")
    assert watch.kinds(actor) == ["open"]
    actor.do("os.close(200)")
    assert watch.kinds(actor) == ["open", "close"]


def test_s12_the_process_that_receives_a_descriptor_becomes_a_holder(watch, actor):
    actor.do("here, there = socket.socketpair()")
    actor.do("read_end, write_end = os.pipe()")
    actor.do(
        "def receive():\n    globals()['got'] = socket.recv_fds(there, 1, 1)\n    os.write(write_end, b'x')"
    )
    actor.do("def receive_in_thread():\n    threading.Thread(target=receive, daemon=True).start()")
    receiver = actor.do("fork(receive_in_thread)")
    actor.do("s = listener(port=8080); socket.send_fds(here, [b'x'], [s.fileno()]); os.read(read_end, 1)")
    watch.wait_for_delivery()
    actor.do("s.close()")
    assert watch.kinds(actor) == ["open"]
    (listener,) = watch.listeners(actor)
    assert listener.opener.pid == actor.pid
    assert [holder.pid for holder in listener.holders] == [receiver]
    actor.do(f"kill({receiver})")
    assert watch.kinds(actor) == ["open", "close"]


def test_s13_events_count_the_reuseport_sockets_on_the_port(watch, actor):
    actor.do("socks = []")
    for _ in range(8):
        actor.do("socks.append(listener(port=8080, options=[(1, 15, 1)]))")
    watch.wait_for_delivery()
    for _ in range(8):
        actor.do("socks.pop().close()")
        watch.wait_for_delivery()
    events = watch.events(actor)
    assert [event.kind for event in events] == ["open"] * 8 + ["close"] * 8
    assert len({event.inode for event in events}) == 8
    expected = [*range(1, 9), *range(7, -1, -1)]
    if watch.info.engine == "poll":  # one poll may find several changes and reports them in any order
        assert [event.sockets for event in events][-1] == 0
    else:
        assert [event.sockets for event in events] == expected


needs_mptcp = pytest.mark.skipif(
    not has_mptcp(), reason="this kernel has no MPTCP, or sysctl net.mptcp.enabled=0"
)


@needs_mptcp
@pytest.mark.parametrize(("family", "address", "name"), [("V4", "127.0.0.1", "ipv4"), ("V6", "::1", "ipv6")])
def test_s14_an_mptcp_listener_is_one_open_and_one_close(watch, actor, family, address, name):
    actor.do(f"s = listener({address!r}, 8080, family={family}, proto=262)")
    inode = actor.do("os.fstat(s.fileno()).st_ino")
    watch.wait_for_delivery()
    actor.do("s.close()")
    assert_one_open_and_close(watch, actor, ("tcp", name, address, 8080), mptcp=True, inode=inode)


@needs_mptcp
def test_s14_an_mptcp_listener_has_the_backlog_of_its_last_listen(watch, actor):
    actor.do("s = listener(port=8080, backlog=5, proto=262)")
    assert [listener.socket.backlog for listener in watch.listeners(actor)] == [5]
    actor.do("s.listen(50)")
    assert [listener.socket.backlog for listener in watch.listeners(actor)] == [50]
    actor.do("s.listen(20); s.close()")
    if not watch.info.has_limit("backlog_change"):
        assert [event.backlog for event in watch.events(actor)] == [5, 20]


@needs_mptcp
@pytest.mark.starts_engine
def test_s14_an_mptcp_listener_opened_before_the_watcher_started_is_in_the_snapshot(watch, actor):
    actor.do("s = listener(port=8080, proto=262)")
    late = watch.start_another(failures=False)
    try:
        assert [event.origin for event in late.events(actor)] == ["snapshot"]
        actor.do("s.close()")
        assert late.kinds(actor) == ["open", "close"]
    finally:
        late.stop()


@pytest.mark.parametrize(("family", "address", "name"), [("V4", "127.0.0.1", "ipv4"), ("V6", "::1", "ipv6")])
def test_s15_a_udp_bind_is_one_open_and_one_close(watch, actor, family, address, name):
    actor.do(f"s = bound({address!r}, 5300, family={family})")
    watch.wait_for_delivery()
    actor.do("s.close()")
    assert_one_open_and_close(watch, actor, ("udp", name, address, 5300), backlog=None)


def test_a_raw_socket_is_not_reported(watch, actor):
    actor.do("s = socket.socket(V4, socket.SOCK_RAW, socket.IPPROTO_UDP); s.bind(('127.0.0.1', 0))")
    assert watch.listeners(actor) == []
    actor.do("s.close()")
    assert watch.kinds(actor) == []


def test_s16_udp_clients_are_not_reported(watch, actor):
    actor.do("s = bound(port=5300)")
    watch.wait_for_delivery()
    actor.do("c = socket.socket(V4, UDP); c.connect(('127.0.0.1', 5300)); c.send(b'x')")
    actor.do("d = socket.socket(V4, UDP); d.sendto(b'x', ('127.0.0.1', 5300))")
    port = actor.do("d.getsockname()[1]")
    watch.wait_for_delivery()
    actor.do("c.close()")
    listed = sorted(listener.socket.port for listener in watch.listeners(actor))
    actor.do("d.close()")
    if watch.info.has_limit("ephemeral_udp"):
        # This engine cannot tell an unconnected client from a listener: the next snapshot contains the client.
        assert listed == sorted([5300, port])
        assert [listener.socket.port for listener in watch.listeners(actor)] == [5300]
        assert [(event.kind, event.port) for event in watch.events(actor)] == [
            ("open", 5300),
            ("open", port),
            ("close", port),
        ]
    else:
        assert listed == [5300]
        assert watch.kinds(actor) == ["open"]


@pytest.mark.starts_engine
def test_s16_ephemeral_udp_ports_are_reported_on_request(watch, actor):
    ephemeral = watch.start_another(ephemeral=True)
    try:
        actor.do("s = bound()")
        ephemeral.wait_for_delivery()
        actor.do("s.close()")
        assert ephemeral.kinds(actor) == ["open", "close"]
        actor.do("d = socket.socket(V4, UDP); d.sendto(b'x', ('127.0.0.1', 5300))")
        port = actor.do("d.getsockname()[1]")
        if not watch.info.has_limit("udp_autobind"):
            assert ephemeral.kinds(actor) == ["open", "close", "open"]
        assert [listener.socket.port for listener in ephemeral.listeners(actor)] == [port]
    finally:
        ephemeral.stop()


def test_s17_a_udp_socket_is_closed_by_connect_and_reopened_by_disconnect(watch, actor):
    # With this limit, the changes are reported only at the next reconciliation.
    is_immediate = not watch.info.has_limit("udp_connect")
    actor.do("t = bound(port=5301); s = bound(port=5300)")
    watch.wait_for_delivery()
    actor.do("s.connect(('127.0.0.1', 5301))")
    if is_immediate:
        assert watch.kinds(actor) == ["open", "open", "close"]
    assert [listener.socket.port for listener in watch.listeners(actor)] == [5301]
    actor.do("disconnect(s)")
    if is_immediate:
        assert watch.kinds(actor) == ["open", "open", "close", "open"]
    assert sorted(listener.socket.port for listener in watch.listeners(actor)) == [5300, 5301]
    events = [event for event in watch.events(actor) if event.port == 5300]
    assert [event.kind for event in events] == ["open", "close", "open"]
    actor.do("s.close()")
    assert watch.kinds(actor).count("close") == 2


def test_s18_one_port_in_two_network_namespaces_is_two_listeners(watch, make_actor):
    first, second = make_actor(), make_actor()
    for actor in (first, second):
        actor.do("s = listener(port=8080)")
    events = watch.events(first, second)
    assert [(event.kind, event.port, event.sockets) for event in events] == [("open", 8080, 1)] * 2
    assert {event.netns for event in events} == {first.netns, second.netns}
    assert len({event.inode for event in events}) == 2


def test_s18_a_listener_is_in_the_namespace_of_its_socket_not_of_its_process(watch, make_actor):
    first, second = make_actor(), make_actor()
    first.do("s = socket.socket()")
    first.do(f"enter({second.namespace!r})")
    first.do("s.bind(('127.0.0.1', 8080)); s.listen()")
    if watch.info.has_limit("empty_namespaces"):
        assert watch.listeners(first) == []
        # bcc reports the open as it happens. Reconciliation cannot list the listeners of a namespace that no
        # process is in, so it reports a close.
        assert watch.kinds(first, second) == ([] if watch.engine == "poll" else ["open", "close"])
        return
    (opened,) = watch.events(first, second)
    assert opened.netns == first.netns
    watch.listeners(first)  # the reconciliation must not report a close
    assert watch.kinds(first, second) == ["open"]


def test_s19_an_event_from_a_container_has_both_pids_and_the_container_id(watch, make_actor, make_cgroup):
    container_id = "ab" * 32
    contained = make_actor(prefix=("unshare", "--pid", "--fork", "--kill-child"))
    make_cgroup(f"docker-{container_id}.scope", contained)
    contained.do("s = listener(port=8080)")
    (opened,) = watch.events(contained)
    assert (opened.pid, opened.ns_pid) == (contained.pid, 1)
    assert opened.container == container_id


@pytest.mark.starts_engine
def test_s20_listeners_opened_before_the_watcher_started_are_in_the_snapshot(watch, actor):
    actor.do("s = listener(port=8080); u = bound(port=5300)")
    late = watch.start_another(failures=False)
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
def test_s21_changes_during_the_snapshot_are_neither_lost_nor_left_open(watch, actor):
    actor.do("socks = {}; stop = threading.Event()")
    actor.do(
        "def storm():\n"
        "    step = 0\n"
        "    while not stop.is_set():\n"
        "        port = 1024 + step * 7919 % 200\n"
        "        if port in socks: socks.pop(port).close()\n"
        "        else:\n"
        "            try: socks[port] = listener(port=port)\n"
        "            except OSError: pass\n"  # the snapshot may still hold the file, which delays the close
        "        step += 1\n"
        "        time.sleep(0.0001)\n"
    )
    for _ in range(5):
        actor.do("stop.clear(); t = threading.Thread(target=storm); t.start()")
        late = watch.start_another(ephemeral=True)
        try:
            late.watcher._hub.wait_ready()
            actor.do("stop.set(); t.join()")
            assert replay(late.events(actor)) == actor.do("sorted(socks)")
            assert late.gaps() == []
        finally:
            late.stop()


def test_s21_poll_reports_the_open_and_close_of_a_listener_that_only_a_snapshot_showed(actor):
    engine = PollEngine()
    engine.attach()
    try:
        actor.do("s = listener(port=8080)")
        engine.snapshot()
        actor.do("s.close()")
        records = [record for record in engine.read_up_to_now() if record.socket.netns == actor.netns]
        assert [record.kind for record in records] == ["open", "close"]
    finally:
        engine.detach()


def test_s22_a_short_lived_listener_of_a_short_lived_process_is_reported(watch, actor):
    code = "import socket; s = socket.create_server(('127.0.0.1', 8080)); s.close()"
    actor.do(f"p = subprocess.Popen([sys.executable, '-c', {code!r}]); p.wait()")
    pid = actor.do("p.pid")
    if watch.info.has_limit("short_lived"):
        assert replay(watch.events(actor)) == []
        return
    opened, closed = watch.events(actor)
    assert [(event.kind, event.port, event.pid) for event in (opened, closed)] == [
        ("open", 8080, pid),
        ("close", 8080, pid),
    ]
    assert opened.process.startswith("python")
    assert opened.time < closed.time


def test_s23_a_listen_in_a_thread_is_attributed_to_its_process(watch, actor):
    actor.do("def run():\n    libc.prctl(PR_SET_NAME, b'thread')\n    globals()['s'] = listener(port=8080)")
    actor.do("t = threading.Thread(target=run); t.start(); t.join()")
    watch.wait_for_delivery()
    actor.do("s.close()")
    assert_one_open_and_close(watch, actor, ("tcp", "ipv4", "127.0.0.1", 8080))


def test_s24_after_exec_the_owner_has_the_name_of_the_new_program(watch, actor):
    actor.do("s = listener(port=8080); os.set_inheritable(s.fileno(), True)")
    watch.wait_for_delivery()
    actor.do("p = subprocess.Popen(['sleep', '600'], close_fds=False); s.close()")
    child = actor.do("p.pid")
    wait_until(lambda: Path(f"/proc/{child}/comm").read_text() == "sleep\n", "the exec")
    (listener,) = watch.listeners(actor)
    assert (listener.owner.pid, listener.owner.process) == (child, "sleep")
    assert (listener.opener.pid, listener.opener.process) == (actor.pid, actor.process)
    actor.do("p.kill(); p.wait()")
    closed = watch.events(actor)[-1]
    assert (closed.kind, closed.pid, closed.process) == ("close", child, "sleep")


def test_s24_a_listener_passed_through_exec_has_both_processes_as_holders(watch, actor):
    actor.do("s = listener(port=8080); os.set_inheritable(s.fileno(), True)")
    watch.wait_for_delivery()
    actor.do("p = subprocess.Popen(['sleep', '600'], close_fds=False)")
    child = actor.do("p.pid")
    wait_until(lambda: Path(f"/proc/{child}/comm").read_text() == "sleep\n", "the exec")
    (listener,) = watch.listeners(actor)
    assert {(holder.pid, holder.process) for holder in listener.holders} == {
        (actor.pid, actor.process),
        (child, "sleep"),
    }
    assert listener.opener.pid == actor.pid
    actor.do("p.kill(); p.wait()")
    (listener,) = watch.listeners(actor)
    assert [holder.pid for holder in listener.holders] == [actor.pid]
    assert watch.kinds(actor) == ["open"]


def test_s25_accepted_connections_are_not_reported(watch, actor):
    actor.do("s = listener(port=8080)")
    for _ in range(20):
        actor.do("c = socket.create_connection(('127.0.0.1', 8080)); a = s.accept()[0]; c.close(); a.close()")
    assert watch.kinds(actor) == ["open"]
    watch.listeners(actor)
    assert watch.kinds(actor) == ["open"]


def test_s26_processes_that_reuse_a_pid_are_distinguished_by_their_start_times(watch, actor):
    last_pid = Path("/proc/sys/kernel/ns_last_pid")
    if not last_pid.exists():
        pytest.skip("this kernel cannot set the next pid: it has no CONFIG_CHECKPOINT_RESTORE")
    actor.do("first = fork(lambda: globals().update(s=listener(port=8080)))")
    pid = actor.do("first")
    watch.wait_for_delivery()
    actor.do("kill(first)")
    time.sleep(0.03)  # start times have a resolution of 10 ms
    actor.do(
        "def reuse_pid():\n"
        "    for attempt in range(200):\n"
        "        with open('/proc/sys/kernel/ns_last_pid', 'w') as file: file.write(str(first - 1))\n"
        "        child = fork(lambda: os.getpid() == first and globals().update(s=listener(port=8081)))\n"
        "        if child == first: return child\n"
        "        kill(child)\n"
    )
    assert actor.do("reuse_pid()") == pid
    watch.wait_for_delivery()
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


def test_s27_a_socket_of_the_kernel_is_listed_without_an_owner(watch, actor):
    actor.do("ip('link', 'add', 'vx0', 'type', 'vxlan', 'id', '1', 'dstport', '4789', 'local', '127.0.0.1')")
    actor.do("ip('link', 'set', 'vx0', 'up')")
    (listener,) = [listener for listener in watch.listeners(actor) if listener.socket.port == 4789]
    assert listener.socket.proto == "udp"
    assert listener.holders == ()
    assert listener.opener is None
    actor.do("ip('link', 'del', 'vx0')")
    assert 4789 not in [listener.socket.port for listener in watch.listeners(actor)]


def test_s27_a_listener_in_flight_between_processes_has_no_holder(watch, actor):
    actor.do("here, there = socket.socketpair()")
    actor.do("s = listener(port=8080); socket.send_fds(here, [b'x'], [s.fileno()]); s.close()")
    (listener,) = watch.listeners(actor)
    assert (listener.socket.port, listener.holders) == (8080, ())
    assert listener.opener is None or listener.opener.pid == actor.pid
    actor.do("[os.close(fd) for fd in socket.recv_fds(there, 1, 1)[1]]")
    assert watch.kinds(actor) == ["open", "close"]


def test_s28_bind_and_listen_through_io_uring_are_one_open_and_one_close(watch, actor):
    if not actor.do("has_uring_bind()"):
        pytest.skip("this kernel has no bind and listen in io_uring (added in 6.11)")
    actor.do("s = uring_listener(8080)")
    watch.wait_for_delivery()
    actor.do("s.close()")
    assert_one_open_and_close(watch, actor, ("tcp", "ipv4", "127.0.0.1", 8080), backlog=7)


def test_s29_a_listener_bound_to_a_device_is_reported_with_the_device(watch, actor):
    actor.do("s = listener(port=8080, options=[(1, 25, b'lo\\0')])")
    watch.wait_for_delivery()
    actor.do("s.close()")
    assert_one_open_and_close(watch, actor, ("tcp", "ipv4", "127.0.0.1", 8080), device="lo")


def test_s29_a_link_local_listener_is_reported_with_the_device_of_its_scope(watch, actor):
    actor.do("ip('link', 'add', 'left', 'type', 'veth', 'peer', 'name', 'right')")
    actor.do("ip('link', 'set', 'left', 'up'); ip('link', 'set', 'right', 'up')")
    actor.do("ip('-6', 'addr', 'add', 'fe80::77/64', 'dev', 'left', 'nodad')")
    actor.do("s = socket.socket(V6); s.bind(('fe80::77', 8080, 0, socket.if_nametoindex('left'))); s.listen()")
    watch.wait_for_delivery()
    (listener,) = watch.listeners(actor)
    assert (listener.socket.device, listener.socket.address) == ("left", "fe80::77")
    actor.do("s.close()")
    assert_one_open_and_close(
        watch, actor, ("tcp", "ipv6", "fe80::77", 8080), device="left", exposure="private"
    )


def test_s30_the_uid_of_an_event_is_that_of_the_process_at_the_call(watch, actor):
    actor.do("s = socket.socket(); s.bind(('127.0.0.1', 8080)); os.setresuid(65534, 65534, 0); s.listen()")
    watch.wait_for_delivery()
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


def test_s30_the_uid_of_a_setuid_program_is_the_real_uid(watch, make_actor):
    actor = make_actor(prefix=("unshare", "--mount", "--fork", "--kill-child"))
    actor.do("subprocess.run(['mount', '-t', 'tmpfs', '-o', 'mode=755', 'tmpfs', '/mnt'], check=True)")
    actor.do("shutil.copy(os.path.realpath(sys.executable), '/mnt/python'); os.chmod('/mnt/python', 0o4755)")
    actor.do(
        f"p = subprocess.Popen(['/mnt/python', '-c', {SETUID!r}], user=65534,"
        " stdin=subprocess.PIPE, stdout=subprocess.PIPE)"
    )
    assert actor.do("p.stdout.readline().decode()") == "65534 0 0\n"
    watch.wait_for_delivery()
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


def test_s31_twenty_thousand_opens_and_closes_in_a_burst_are_all_reported(watch, actor):
    pairs = 20_000
    actor.do(f"storm = {STORM.format(pairs=pairs)!r}")
    before = len(watch.gaps())
    actor.do("p = subprocess.Popen([sys.executable, '-c', storm]); p.wait()")
    events = watch.events(actor)
    assert len(watch.gaps()) == before
    assert watch.listeners(actor) == []
    if watch.info.has_limit("short_lived"):
        assert replay(events) == []
        return
    assert len(events) == 2 * pairs
    for opened, closed in zip(events[::2], events[1::2], strict=True):
        assert (opened.kind, closed.kind) == ("open", "close")
        assert (opened.inode, opened.port) == (closed.inode, closed.port)
