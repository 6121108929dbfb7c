"""Which events belong to a watched process tree.

The prefix `test_tNN_` is the number of a scenario in the table that scripts/kernels_table.py writes.
"""

import contextlib
import os
import time

import pytest
from support import Actor, RecordingWatcher, has_mptcp, wait_until

from portwatch import PortWatcher, PortwatchError
from portwatch.engines.members import MAP_ENTRIES


class TreeWatcher(RecordingWatcher):
    """A recording watcher of the tree below `root`.

    It also watches a marker process. `wait_for_delivery` opens and closes a listener in the marker and waits
    for the two events. All earlier events have then been delivered.
    """

    def __init__(self, engine, root, **options):
        self.marker = Actor()
        super().__init__(engine, pid=self.marker.pid, **options)
        self.watcher.add_pid(root.pid)

    def wait_for_delivery(self):
        self.marker.do("s = listener()")
        inode = self.marker.do("os.fstat(s.fileno()).st_ino")
        wait_until(lambda: self._count(inode) == 1, "the marker's open")
        self.marker.do("s.close()")
        wait_until(lambda: self._count(inode) == 2, "the marker's close")

    @property
    def may_have_missed_forks(self):
        """True if the kernel skipped a run of a BPF program. A fork or an exit may then be unreported."""
        return self.watcher.choice.engine.recursion_misses > 0

    def stop(self):
        super().stop()
        self.marker.close()


@pytest.fixture
def watch_tree(watch):
    """A function that starts a watcher of one process tree. Meanwhile, `watch` watches everything."""
    watchers = []

    def start(root, **options):
        watchers.append(TreeWatcher(watch.engine, root, **options))
        return watchers[-1]

    yield start
    for watcher in watchers:
        watcher.stop()


@pytest.fixture(params=["all", "a tree"])
def watch_all_but(watch, request):
    """A function that starts a watcher which excludes one process tree.

    With "all", the watcher watches everything else. With "a tree", it watches the rest of the tests' own tree.
    """
    watchers = []

    def start(root):
        pid = os.getpid() if request.param == "a tree" else None
        watchers.append(watch.start_another(pid=pid, not_pids=[root.pid]))
        return watchers[-1]

    yield start
    for watcher in watchers:
        watcher.stop()


@pytest.fixture
def root(make_actor):
    actor = make_actor()
    actor.do("socks = []")
    return actor


def test_t01_a_root_its_child_and_its_grandchild_are_in_the_tree(watch_tree, root):
    tree = watch_tree(root)
    root.do("a = listener(port=8001)")
    root.do("fork(lambda: socks.append(listener(port=8002)))")
    root.do("fork(lambda: fork(lambda: socks.append(listener(port=8003))))")
    assert sorted(tree.ports(root)) == [("open", 8001), ("open", 8002), ("open", 8003)]


def test_t02_listeners_of_a_process_outside_the_tree_are_not_reported(watch_tree, root, make_actor):
    other = make_actor(root.namespace)
    tree = watch_tree(root)
    other.do("s = listener(port=8080)")
    root.do("t = listener(port=8081)")
    other.do("s.close()")
    assert tree.ports(root) == [("open", 8081)]


def test_t03_a_daemon_adopted_by_init_stays_in_the_tree(watch_tree, root, watch):
    tree = watch_tree(root)
    pid = root.do("fork_daemon(lambda: socks.append(listener(port=8080)))")
    assert watch.kinds(root) == ["open"]
    os.kill(pid, 9)
    if watch.info.has_limit("trees"):
        wait_until(lambda: watch.kinds(root) == ["open", "close"], "the close")
        assert tree.ports(root) == []
        return
    wait_until(lambda: tree.kinds(root)[-1] == "close", "the close")
    assert [(event.kind, event.port, event.pid) for event in tree.events(root)] == [
        ("open", 8080, pid),
        ("close", 8080, pid),
    ]


def test_t04_descendants_stay_in_the_tree_after_the_root_exits(watch_tree, make_actor, root, watch):
    tree = watch_tree(root)
    root.do("a, b = socket.socketpair()")
    root.do("here = os.getpid()")
    child = root.do(
        "fork_child() or (b.close(), libc.prctl(1, 0), signal.alarm(300), a.recv(1),"
        " socks.append(listener(port=8080)), time.sleep(600))"
    )
    witness = make_actor(f"/proc/{child}/ns/net")
    root.kill()
    wait_until(lambda: watch.kinds(witness) == ["open"], "the child's open")
    os.kill(child, 9)
    wait_until(lambda: watch.kinds(witness) == ["open", "close"], "the close")
    if watch.info.has_limit("trees"):
        assert tree.ports(witness) == []
        return
    assert tree.ports(witness) == [("open", 8080), ("close", 8080)]


def test_t05_children_that_existed_before_the_watcher_started_are_in_the_tree(watch_tree, root):
    child = root.do("fork(lambda: socks.append(listener(port=8080)))")
    tree = watch_tree(root)
    root.do(f"kill({child})")
    assert [(event.kind, event.origin) for event in tree.events(root)] == [
        ("open", "snapshot"),
        ("close", "event"),
    ]


def test_t06_a_descendant_that_exits_at_once_is_in_the_tree(watch_tree, root, watch):
    tree = watch_tree(root)
    root.do("[run_in_child(lambda: socks.append(listener(port=port))) for port in range(8000, 8050)]")
    if watch.info.has_limit("trees"):
        assert tree.kinds(root).count("open") == tree.kinds(root).count("close")
        return
    assert tree.ports(root) == [(kind, port) for port in range(8000, 8050) for kind in ("open", "close")]


def test_t07_a_listener_that_the_tree_inherited_is_reported_until_the_tree_closes_it(watch_tree, make_actor):
    parent = make_actor()
    parent.do("socks = [listener(port=8080)]")
    child = parent.do("fork(lambda: None)")
    root = Process(child)
    tree = watch_tree(root)
    parent.do("socks[0].close()")
    assert tree.ports(parent) == [("open", 8080)]
    parent.do(f"kill({child})")
    assert tree.ports(parent) == [("open", 8080), ("close", 8080)]


def test_t07_a_listener_passed_into_the_tree_is_reported_after_the_next_reconciliation(
    watch_tree, make_actor, watch
):
    outsider = make_actor()
    outsider.do("a, b = socket.socketpair(socket.AF_UNIX)")
    member = outsider.do("fork_child() or receive(b)")
    tree = watch_tree(Process(member))
    outsider.do("s = listener(port=8080)")
    outsider.do("socket.send_fds(a, [b'x'], [s.fileno()])")
    outsider.do("_ = a.recv(1)")
    if watch.engine != "poll":  # a poll may first see the listener after it was passed
        assert tree.ports(outsider) == []
    watch.listeners(outsider)
    assert tree.kinds(outsider) == ["open"]
    outsider.do("s.close()")
    outsider.do(f"kill({member})")
    assert tree.kinds(outsider) == ["open", "close"]


def test_t08_a_process_that_reuses_the_pid_of_the_root_is_not_in_the_tree(watch_tree, root, make_actor, watch):
    later = make_actor(root.namespace)
    tree = watch_tree(root)
    pid = root.pid
    root.kill()
    later.do("socks = []; there, here = os.pipe()")
    run = "(socks.append(listener(port=8080)), os.write(here, b'x'))"
    if later.do(f"fork_as({pid}, lambda: {run})") is None:
        pytest.skip(f"the kernel did not assign pid {pid} again: other processes kept forking")
    later.do("_ = os.read(there, 1)")
    assert [(event.kind, event.pid) for event in watch.events(later)] == [("open", pid)]
    assert tree.ports(later) == []


FORKING = """
def fork_without_end():
    while True:
        run_in_child(lambda: run_in_child(lambda: (time.sleep(0.001), socks.append(listener()))))
forkers = [fork_child() or fork_without_end() for _ in range(2)]
"""


def test_t05_the_snapshot_of_a_tree_that_keeps_forking_is_complete(watch_tree, root, watch):
    child = root.do("fork(lambda: socks.append(listener(port=8080)))")
    root.do(FORKING)
    for _ in range(3):
        tree = watch_tree(root)
        begin = time.time_ns()
        assert ("open", "snapshot", 8080) in [
            (event.kind, event.origin, event.port) for event in tree.events(root)
        ]
        if not watch.info.has_limit("trees"):
            wait_until(lambda tree=tree: len(tree.delivered) >= 20, "twenty events of forked listeners")
            reported = opens(tree, root, begin)
            assert reported == opens(watch, root, begin)[: len(reported)] or tree.may_have_missed_forks
    root.do("[kill(pid) for pid in forkers]")
    root.do(f"kill({child})")


def opens(watch, root, begin):
    """Return the inodes of the sockets opened after `begin`, in order."""
    return [event.inode for event in watch.events(root) if event.kind == "open" and event.time > begin]


FORKS = "step=0; while [ $step -lt 5000 ]; do (:); step=$((step + 1)); done"


def test_t09_a_tree_that_forks_5000_times_is_tracked_and_leaves_no_map_entries(watch_tree, root, watch):
    tree = watch_tree(root)
    root.do(f"p = subprocess.Popen(['sh', '-c', {FORKS!r}])")
    listen = "run_in_child(lambda: socks.append(listener(port=8080)))"
    if watch.info.has_limit("trees"):
        root.do(f"p.wait(); {listen}; s = listener(port=8081)")
        assert tree.ports(root)[-1] == ("open", 8081)
        return
    members = tree.watcher.choice.engine._membership._entries
    sizes = []
    while root.do("p.poll()") is None:
        root.do(listen)
        sizes.append(len(set(members.pids())))
    root.do(listen)
    assert (
        tree.ports(root) == [("open", 8080), ("close", 8080)] * (len(sizes) + 1) or tree.may_have_missed_forks
    )
    assert max(sizes) < 10
    if tree.may_have_missed_forks:
        tree.watcher.listeners()  # reconciliation removes members whose exit was missed
    assert set(members.pids()) == {root.pid, tree.marker.pid}


def test_a_process_that_did_not_fit_into_the_map_of_members_is_found_by_reconciliation(watch_tree, root, watch):
    if watch.info.has_limit("trees"):
        pytest.skip("this engine has no map of members")
    tree = watch_tree(root)
    members = tree.watcher.choice.engine._membership._entries
    unused_pids = range(1 << 22, (1 << 22) + MAP_ENTRIES)  # pids are below PID_MAX_LIMIT, 1 << 22
    try:
        with contextlib.suppress(PortwatchError):
            for pid in unused_pids:
                members.put(pid, 1, 0, is_new=True)
        child = root.do("fork(lambda: socks.append(listener(port=8080)))")
        tree.marker.do("fork(lambda: None)")
        assert not members.get(child)
    finally:
        for pid in unused_pids:
            members.remove(pid)
    tree.watcher.listeners()
    assert tree.ports(root) == [("open", 8080)]
    grandchild = root.do("fork(lambda: None)")
    assert members.get(grandchild)
    os.kill(child, 9)
    wait_until(lambda: tree.kinds(root)[-1] == "close", "the close")
    wait_until(lambda: not members.get(child), "the child to leave the map")


def test_trees_can_be_added_and_removed_while_the_watcher_runs(watch_tree, root, make_actor):
    other = make_actor()
    other.do("s = listener(port=8080)")
    tree = watch_tree(root)
    assert tree.ports(root, other) == []
    tree.watcher.add_pid(other.pid)
    assert [(event.kind, event.origin) for event in tree.events(other)] == [("open", "snapshot")]
    tree.watcher.remove_pid(other.pid)
    other.do("t = listener(port=8081)")
    root.do("t = listener(port=8082)")
    assert tree.ports(root, other) == [("open", 8080), ("open", 8082)]
    assert [listener.socket.port for listener in tree.listeners(root)] == [8082]


def test_a_failed_bind_in_a_tree_reports_a_holder_outside_the_tree(watch_tree, root, make_actor, watch):
    other = make_actor(root.namespace)
    other.do("s = listener(port=8080)")
    tree = watch_tree(root)
    assert "error" in root.attempt("listener(port=8080)")
    if watch.info.has_limit("failures"):
        assert tree.events(root) == []
        return
    (event,) = tree.events(root)
    assert (event.kind, event.held_by[0].pid) == ("bind_failed", other.pid)


def test_an_excluded_tree_is_not_reported_and_everything_else_is(watch_all_but, root, make_actor, watch):
    other = make_actor(root.namespace)
    root.do("before = listener(port=8000)")
    rest = watch_all_but(root)
    other.do("s = listener(port=8080)")
    root.do("a = listener(port=8001)")
    child = root.do("fork(lambda: socks.append(listener(port=8002)))")
    assert "error" in root.attempt("listener(port=8080)")
    assert rest.ports(root) == [("open", 8080)]
    assert [listener.socket.port for listener in rest.listeners(root)] == [8080]
    if not watch.info.has_limit("trees"):
        root.do("run_in_child(lambda: socks.append(listener(port=8003)))")
        daemon = root.do("fork_daemon(lambda: socks.append(listener(port=8004)))")
        assert rest.ports(root) == [("open", 8080)]
        os.kill(daemon, 9)
        wait_until(lambda: ("close", 8004) in watch.ports(root), "the close of the daemon's port")
    root.do(f"kill({child}); before.close()")
    other.do("s.close()")
    root.kill()
    assert rest.ports(other) == [("open", 8080), ("close", 8080)]


def test_a_listener_passed_into_an_excluded_tree_still_has_its_close_reported(watch_all_but, make_actor):
    outsider = make_actor()
    outsider.do("a, b = socket.socketpair(socket.AF_UNIX)")
    member = outsider.do("fork_child() or receive(b)")
    rest = watch_all_but(Process(member))
    outsider.do("s = listener(port=8080)")
    assert rest.ports(outsider) == [("open", 8080)]
    outsider.do("socket.send_fds(a, [b'x'], [s.fileno()])")
    outsider.do("_ = a.recv(1); s.close()")
    (listener,) = rest.listeners(outsider)
    assert [holder.pid for holder in listener.holders] == [member]
    assert rest.ports(outsider) == [("open", 8080)]
    outsider.do(f"kill({member})")
    assert rest.ports(outsider) == [("open", 8080), ("close", 8080)]


def test_a_listener_of_an_excluded_tree_is_not_reported_even_if_another_process_closes_it(
    watch_all_but, make_actor
):
    outsider = make_actor()
    outsider.do("a, b = socket.socketpair(socket.AF_UNIX)")
    open_and_send = "s = listener(port=8080); socket.send_fds(b, [b'x'], [s.fileno()]); time.sleep(600)"
    member = outsider.do(f"fork_child() or (b.recv(1), exec({open_and_send!r}))")
    rest = watch_all_but(Process(member))
    outsider.do("a.send(b'x'); _, (fd,), _, _ = socket.recv_fds(a, 1, 1)")
    assert rest.ports(outsider) == []
    outsider.do(f"kill({member})")
    assert rest.listeners(outsider) == []
    outsider.do("os.close(fd)")
    assert rest.ports(outsider) == []


@pytest.mark.parametrize("named", ["pid", "not_pids"])
def test_a_root_that_exits_before_the_watcher_starts_is_an_error(watch, make_actor, named):
    actor = make_actor()
    name, _, hooks = watch.engine.partition("-")
    roots = {"pid": actor.pid} if named == "pid" else {"not_pids": [actor.pid]}
    watcher = PortWatcher(engine=name, hooks=hooks or "auto", interval=0.05, **roots)
    actor.kill()
    with pytest.raises(PortwatchError, match=f"process {actor.pid} has ended"):
        watcher.start()


STORM = "[listener(port=port, proto={}).close() for _ in range(20) for port in range(9000, 9100)]"


@pytest.mark.parametrize("proto", [0, 262], ids=["tcp", "mptcp"])
def test_activity_outside_a_tree_does_not_wake_the_thread_that_reads_events(root, make_actor, watch, proto):
    if proto and not has_mptcp():
        pytest.skip("this kernel has no MPTCP")
    if watch.info.has_limit("outside"):
        pytest.skip(
            "this engine cannot filter in the kernel, so activity outside the tree wakes the reading thread"
        )
    other = make_actor()
    # The unusual reconcile interval keeps this watcher from sharing the unfiltered engine of `watch`.
    tree = TreeWatcher(watch.engine, root, reconcile_interval=3600.0)
    try:
        engine = tree.watcher.choice.engine
        tree.wait_for_delivery()
        reads = count_calls(engine, "read")
        other.do(STORM.format(proto))
        assert reads() == 0
        root.do("s = listener(port=8080)")
        assert tree.ports(root, other) == [("open", 8080)]
        with PortWatcher(
            engine=watch.engine.partition("-")[0],
            hooks=watch.engine.partition("-")[2] or "auto",
            interval=0.05,
            reconcile_interval=3600.0,
            callback=lambda _: None,
        ):
            before = reads()
            other.do(STORM.format(proto))
            wait_until(lambda: reads() > before, "a read for the watcher of everything")
        other.do("kept = listener(port=8081)")
        other.do("kept.close()")
        assert tree.ports(root, other) == [("open", 8080)]
    finally:
        tree.stop()


def test_listeners_opened_in_a_tree_are_reported_as_closed_when_its_last_process_exits(root, watch):
    tree = TreeWatcher(watch.engine, root, reconcile_interval=3600.0)
    try:
        proto = 262 if has_mptcp() else 0
        root.do(f"socks = [listener(port=8080), listener(port=8081, proto={proto}), bound(port=8082)]")
        assert tree.kinds(root) == ["open"] * 3
        root.kill()
        assert tree.kinds(root) == ["open"] * 3 + ["close"] * 3
    finally:
        tree.stop()


def test_listeners_in_the_snapshot_are_closed_when_the_last_process_of_the_tree_exits(make_actor, watch):
    parent = make_actor()
    proto = 262 if has_mptcp() else 0
    parent.do(f"socks = [listener(port=8080), listener(port=8081, proto={proto}), bound(port=8082)]")
    child = parent.do("fork(lambda: None)")
    tree = TreeWatcher(watch.engine, Process(child), reconcile_interval=3600.0)
    try:
        assert tree.kinds(parent) == ["open"] * 3
        parent.do("[s.close() for s in socks]")
        os.kill(child, 9)
        wait_until(lambda: tree.kinds(parent) == ["open"] * 3 + ["close"] * 3, "the closes")
    finally:
        tree.stop()


def test_only_listeners_of_a_tree_are_marked_and_closing_removes_the_mark(root, watch):
    if watch.engine != "bcc":
        pytest.skip("only bcc marks the sockets of a tree in a map whose entries can be counted")
    tree = TreeWatcher(watch.engine, root, reconcile_interval=3600.0)
    try:
        marked_sockets = tree.watcher.choice.engine._programs.bpf[b"tree_sockets"]
        tree.wait_for_delivery()
        before = len(marked_sockets)
        root.do("a = listener(port=8080); b = socket.create_connection(('127.0.0.1', 8080)); c = bound(port=0)")
        if has_mptcp():
            root.do("socks = [listener(port=8081, proto=262)]")
        # This failed bind makes the BPF program look up who uses the port.
        assert "error" in root.attempt("bound(port=8080, kind=TCP)")
        tree.watcher.listeners()
        assert len(marked_sockets) == before + 1 + has_mptcp()
        root.do("[s.close() for s in (a, b, c, *socks)]")
        tree.wait_for_delivery()
        assert len(marked_sockets) == before
    finally:
        tree.stop()


def count_calls(instance, name):
    """Count the calls of a method from now on. Return a function that returns the count so far."""
    calls = []
    method = getattr(instance, name)

    def counted(*arguments):
        result = method(*arguments)
        calls.append(result)
        return result

    setattr(instance, name, counted)
    return lambda: len(calls)


class Process:
    """A child of an actor that serves as the root of a watched tree."""

    def __init__(self, pid):
        self.pid = pid
