"""Whom it concerns, by process tree: rows T01 to T09 of the contract."""

import contextlib
import os
import time

import pytest
from support import Actor, Watch, has_mptcp, wait_until

from portwatch import PortWatcher, PortwatchError
from portwatch.engines.members import MAP_ENTRIES


class Told(Watch):
    """A watcher of trees, one of which is a marker's, by which it is known that all has been told."""

    def __init__(self, engine, root, **options):
        self.marker = Actor()
        super().__init__(engine, pid=self.marker.pid, **options)
        self.watcher.add_pid(root.pid)

    def settle(self):
        self.marker.do("s = listener()")
        inode = self.marker.do("os.fstat(s.fileno()).st_ino")
        wait_until(lambda: self._count(inode) == 1, "the marker's open")
        self.marker.do("s.close()")
        wait_until(lambda: self._count(inode) == 2, "the marker's close")

    @property
    def recursion_misses(self):
        """Whether the kernel left programs out, as new ones do where they are slow: it is known, and told."""
        return self.watcher.choice.engine.recursion_misses > 0

    def stop(self):
        super().stop()
        self.marker.close()


@pytest.fixture
def told_of(watch):
    """Makes a watcher of a tree, beside one that hears of everything."""
    made = []

    def make(root, **options):
        made.append(Told(watch.engine, root, **options))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture(params=["all", "a tree"])
def told_but_of(watch, request):
    """Makes a watcher of all, or of the tree of these tests, but for a subtree."""
    made = []

    def make(root):
        pid = os.getpid() if request.param == "a tree" else None
        made.append(watch.another(pid=pid, not_pids=[root.pid]))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def root(make_actor):
    actor = make_actor()
    actor.do("made = []")
    return actor


def test_t01_a_root_its_child_and_its_grandchild_are_in(told_of, root):
    told = told_of(root)
    root.do("a = listener(port=8001)")
    root.do("fork(lambda: made.append(listener(port=8002)))")
    root.do("fork(lambda: fork(lambda: made.append(listener(port=8003))))")
    assert sorted(told.ports(root)) == [("open", 8001), ("open", 8002), ("open", 8003)]


def test_t02_a_process_outside_is_out(told_of, root, make_actor):
    other = make_actor(root.namespace)
    told = told_of(root)
    other.do("s = listener(port=8080)")
    root.do("t = listener(port=8081)")
    other.do("s.close()")
    assert told.ports(root) == [("open", 8081)]


def test_t03_a_daemon_that_init_adopted_is_in(told_of, root, watch):
    told = told_of(root)
    pid = root.do("daemon(lambda: made.append(listener(port=8080)))")
    assert watch.kinds(root) == ["open"]
    os.kill(pid, 9)
    if watch.info.has_limit("trees"):
        wait_until(lambda: watch.kinds(root) == ["open", "close"], "its end")
        assert told.ports(root) == []
        return
    wait_until(lambda: told.kinds(root)[-1] == "close", "its end")
    assert [(event.kind, event.port, event.pid) for event in told.events(root)] == [
        ("open", 8080, pid),
        ("close", 8080, pid),
    ]


def test_t04_descendants_stay_in_when_the_root_has_ended(told_of, make_actor, root, watch):
    told = told_of(root)
    root.do("a, b = socket.socketpair()")
    root.do("here = os.getpid()")
    child = root.do(
        "fork_child() or (b.close(), libc.prctl(1, 0), signal.alarm(300), a.recv(1),"
        " made.append(listener(port=8080)), time.sleep(600))"
    )
    witness = make_actor(f"/proc/{child}/ns/net")
    root.kill()
    wait_until(lambda: watch.kinds(witness) == ["open"], "the child's open")
    os.kill(child, 9)
    wait_until(lambda: watch.kinds(witness) == ["open", "close"], "its end")
    if watch.info.has_limit("trees"):
        assert told.ports(witness) == []
        return
    assert told.ports(witness) == [("open", 8080), ("close", 8080)]


def test_t05_children_that_were_there_before_are_in(told_of, root):
    child = root.do("fork(lambda: made.append(listener(port=8080)))")
    told = told_of(root)
    root.do(f"kill({child})")
    assert [(event.kind, event.origin) for event in told.events(root)] == [
        ("open", "snapshot"),
        ("close", "event"),
    ]


def test_t06_a_descendant_that_is_gone_at_once_is_in(told_of, root, watch):
    told = told_of(root)
    root.do("[flash(lambda: made.append(listener(port=port))) for port in range(8000, 8050)]")
    if watch.info.has_limit("trees"):
        assert told.kinds(root).count("open") == told.kinds(root).count("close")
        return
    assert told.ports(root) == [(kind, port) for port in range(8000, 8050) for kind in ("open", "close")]


def test_t07_a_listener_that_the_root_inherited_is_in(told_of, make_actor):
    parent = make_actor()
    parent.do("made = [listener(port=8080)]")
    child = parent.do("fork(lambda: None)")
    root = Process(child)
    told = told_of(root)
    parent.do("made[0].close()")
    assert told.ports(parent) == [("open", 8080)]
    parent.do(f"kill({child})")
    assert told.ports(parent) == [("open", 8080), ("close", 8080)]


def test_t07_a_listener_that_a_member_received_is_in_at_the_next_check(told_of, make_actor, watch):
    outsider = make_actor()
    outsider.do("a, b = socket.socketpair(socket.AF_UNIX)")
    member = outsider.do("fork_child() or receive(b)")
    told = told_of(Process(member))
    outsider.do("s = listener(port=8080)")
    outsider.do("socket.send_fds(a, [b'x'], [s.fileno()])")
    outsider.do("_ = a.recv(1)")
    if watch.engine != "poll":  # which may find it when it is theirs already
        assert told.ports(outsider) == []
    watch.listeners(outsider)
    assert told.kinds(outsider) == ["open"]
    outsider.do("s.close()")
    outsider.do(f"kill({member})")
    assert told.kinds(outsider) == ["open", "close"]


def test_t08_another_process_of_the_roots_pid_is_out(told_of, root, make_actor, watch):
    heir = make_actor(root.namespace)
    told = told_of(root)
    pid = root.pid
    root.kill()
    heir.do("made = []; there, here = os.pipe()")
    run = "(made.append(listener(port=8080)), os.write(here, b'x'))"
    if heir.do(f"as_pid({pid}, lambda: {run})") is None:
        pytest.skip(f"the kernel did not give pid {pid} a second time: somebody else forks all the time")
    heir.do("_ = os.read(there, 1)")
    assert [(event.kind, event.pid) for event in watch.events(heir)] == [("open", pid)]
    assert told.ports(heir) == []


FORKING = """
def fork_all_the_time():
    while True:
        flash(lambda: flash(lambda: (time.sleep(0.001), made.append(listener()))))
forkers = [fork_child() or fork_all_the_time() for _ in range(2)]
"""


def test_t05_a_tree_that_forks_all_the_time_is_whole_from_the_start(told_of, root, watch):
    child = root.do("fork(lambda: made.append(listener(port=8080)))")
    root.do(FORKING)
    for _ in range(3):
        told = told_of(root)
        begin = time.time_ns()
        assert ("open", "snapshot", 8080) in [(one.kind, one.origin, one.port) for one in told.events(root)]
        if not watch.info.has_limit("trees"):
            wait_until(lambda told=told: len(told._seen) >= 20, "those who listen")
            heard = opens(told, root, begin)
            assert heard == opens(watch, root, begin)[: len(heard)] or told.skipped
    root.do("[kill(pid) for pid in forkers]")
    root.do(f"kill({child})")


def opens(watch, root, begin):
    """The sockets that were opened from some time on, in order."""
    return [one.inode for one in watch.events(root) if one.kind == "open" and one.time > begin]


FORKS = "step=0; while [ $step -lt 5000 ]; do (:); step=$((step + 1)); done"


def test_t09_a_tree_that_forks_without_end_is_still_known_and_leaves_nothing_behind(told_of, root, watch):
    told = told_of(root)
    root.do(f"p = subprocess.Popen(['sh', '-c', {FORKS!r}])")
    listen = "flash(lambda: made.append(listener(port=8080)))"
    if watch.info.has_limit("trees"):
        root.do(f"p.wait(); {listen}; s = listener(port=8081)")
        assert told.ports(root)[-1] == ("open", 8081)
        return
    members = told.watcher.choice.engine._membership._entries
    sizes = []
    while root.do("p.poll()") is None:
        root.do(listen)
        sizes.append(len(set(members.pids())))
    root.do(listen)
    assert told.ports(root) == [("open", 8080), ("close", 8080)] * (len(sizes) + 1) or told.skipped
    assert max(sizes) < 10
    if told.skipped:
        told.watcher.listeners()  # a check, which forgets whose end was not seen
    assert set(members.pids()) == {root.pid, told.marker.pid}


def test_a_member_that_there_was_no_room_for_is_found_by_the_next_check(told_of, root, watch):
    if watch.info.has_limit("trees"):
        pytest.skip("nothing is kept of members here")
    told = told_of(root)
    kept = told.watcher.choice.engine._membership._entries
    nobodys = range(1 << 22, (1 << 22) + MAP_ENTRIES)  # above every pid
    try:
        with contextlib.suppress(PortwatchError):
            for pid in nobodys:
                kept.put(pid, 1, 0, is_new=True)
        child = root.do("fork(lambda: made.append(listener(port=8080)))")
        told.marker.do("fork(lambda: None)")
        assert not kept.get(child)
    finally:
        for pid in nobodys:
            kept.remove(pid)
    told.watcher.listeners()
    assert told.ports(root) == [("open", 8080)]
    grandchild = root.do("fork(lambda: None)")
    assert kept.get(grandchild)
    os.kill(child, 9)
    wait_until(lambda: told.kinds(root)[-1] == "close", "its end")
    wait_until(lambda: not kept.get(child), "its end")


def test_trees_come_and_go_while_it_runs(told_of, root, make_actor):
    other = make_actor()
    other.do("s = listener(port=8080)")
    told = told_of(root)
    assert told.ports(root, other) == []
    told.watcher.add_pid(other.pid)
    assert [(event.kind, event.origin) for event in told.events(other)] == [("open", "snapshot")]
    told.watcher.remove_pid(other.pid)
    other.do("t = listener(port=8081)")
    root.do("t = listener(port=8082)")
    assert told.ports(root, other) == [("open", 8080), ("open", 8082)]
    assert [one.socket.port for one in told.watcher.listeners() if one.socket.netns == root.netns] == [8082]


def test_who_is_in_the_way_of_a_tree_is_named_from_outside_of_it(told_of, root, make_actor, watch):
    other = make_actor(root.namespace)
    other.do("s = listener(port=8080)")
    told = told_of(root)
    assert "error" in root.attempt("listener(port=8080)")
    if watch.info.has_limit("failures"):
        assert told.events(root) == []
        return
    (event,) = told.events(root)
    assert (event.kind, event.held_by[0].pid) == ("bind_failed", other.pid)


def test_a_tree_that_is_left_out_is_out_and_the_rest_is_in(told_but_of, root, make_actor, watch):
    other = make_actor(root.namespace)
    root.do("before = listener(port=8000)")
    told = told_but_of(root)
    other.do("s = listener(port=8080)")
    root.do("a = listener(port=8001)")
    child = root.do("fork(lambda: made.append(listener(port=8002)))")
    assert "error" in root.attempt("listener(port=8080)")
    assert told.ports(root) == [("open", 8080)]
    assert [one.socket.port for one in told.listeners(root)] == [8080]
    if not watch.info.has_limit("trees"):
        root.do("flash(lambda: made.append(listener(port=8003)))")
        daemon = root.do("daemon(lambda: made.append(listener(port=8004)))")
        assert told.ports(root) == [("open", 8080)]
        os.kill(daemon, 9)
        wait_until(lambda: ("close", 8004) in watch.ports(root), "its end")
    root.do(f"kill({child}); before.close()")
    other.do("s.close()")
    root.kill()
    assert told.ports(other) == [("open", 8080), ("close", 8080)]


def test_what_was_told_before_a_tree_that_is_left_out_received_it_is_told_to_its_close(told_but_of, make_actor):
    outsider = make_actor()
    outsider.do("a, b = socket.socketpair(socket.AF_UNIX)")
    member = outsider.do("fork_child() or receive(b)")
    told = told_but_of(Process(member))
    outsider.do("s = listener(port=8080)")
    assert told.ports(outsider) == [("open", 8080)]
    outsider.do("socket.send_fds(a, [b'x'], [s.fileno()])")
    outsider.do("_ = a.recv(1); s.close()")
    (shown,) = told.listeners(outsider)
    assert [one.pid for one in shown.holders] == [member]
    assert told.ports(outsider) == [("open", 8080)]
    outsider.do(f"kill({member})")
    assert told.ports(outsider) == [("open", 8080), ("close", 8080)]


def test_what_a_tree_that_is_left_out_opened_is_out_whoever_closes_it(told_but_of, make_actor):
    outsider = make_actor()
    outsider.do("a, b = socket.socketpair(socket.AF_UNIX)")
    open_and_send = "s = listener(port=8080); socket.send_fds(b, [b'x'], [s.fileno()]); time.sleep(600)"
    member = outsider.do(f"fork_child() or (b.recv(1), exec({open_and_send!r}))")
    told = told_but_of(Process(member))
    outsider.do("a.send(b'x'); _, (fd,), _, _ = socket.recv_fds(a, 1, 1)")
    assert told.ports(outsider) == []
    outsider.do(f"kill({member})")
    assert told.listeners(outsider) == []
    outsider.do("os.close(fd)")
    assert told.ports(outsider) == []


@pytest.mark.parametrize("named", ["pid", "not_pids"])
def test_a_root_that_ends_before_the_start_is_said(watch, make_actor, named):
    actor = make_actor()
    name, _, hooks = watch.engine.partition("-")
    roots = {"pid": actor.pid} if named == "pid" else {"not_pids": [actor.pid]}
    watcher = PortWatcher(engine=name, hooks=hooks or "auto", interval=0.05, **roots)
    actor.kill()
    with pytest.raises(PortwatchError, match=f"process {actor.pid} has ended"):
        watcher.start()


STORM = "[listener(port=port, proto={}).close() for _ in range(20) for port in range(9000, 9100)]"


@pytest.mark.parametrize("proto", [0, 262], ids=["tcp", "mptcp"])
def test_a_storm_elsewhere_wakes_nobody_who_hears_of_a_tree(root, make_actor, watch, proto):
    if proto and not has_mptcp():
        pytest.skip("this kernel has no MPTCP")
    if watch.info.has_limit("outside"):
        pytest.skip("limited here: what happens outside of trees wakes the reader")
    other = make_actor()
    told = Told(
        watch.engine, root, reconcile_interval=3600.0
    )  # an engine of its own, where nobody hears of more
    try:
        engine = told.watcher.choice.engine
        told.settle()
        reads = count_calls(engine, "read")
        other.do(STORM.format(proto))
        assert reads() == 0
        root.do("s = listener(port=8080)")
        assert told.ports(root, other) == [("open", 8080)]
        with PortWatcher(
            engine=watch.engine.partition("-")[0],
            hooks=watch.engine.partition("-")[2] or "auto",
            interval=0.05,
            reconcile_interval=3600.0,
            callback=lambda _: None,
        ):
            before = reads()
            other.do(STORM.format(proto))
            wait_until(lambda: reads() > before, "somebody who hears of it")
        other.do("kept = listener(port=8081)")
        other.do("kept.close()")
        assert told.ports(root, other) == [("open", 8080)]
    finally:
        told.stop()


def test_what_a_tree_opened_is_closed_for_it_when_all_of_it_is_gone(root, watch):
    told = Told(watch.engine, root, reconcile_interval=3600.0)
    try:
        proto = 262 if has_mptcp() else 0
        root.do(f"made = [listener(port=8080), listener(port=8081, proto={proto}), bound(port=8082)]")
        assert told.kinds(root) == ["open"] * 3
        root.kill()
        assert told.kinds(root) == ["open"] * 3 + ["close"] * 3
    finally:
        told.stop()


def test_what_a_tree_held_before_is_closed_for_it_when_all_of_it_is_gone(make_actor, watch):
    parent = make_actor()
    proto = 262 if has_mptcp() else 0
    parent.do(f"made = [listener(port=8080), listener(port=8081, proto={proto}), bound(port=8082)]")
    child = parent.do("fork(lambda: None)")
    told = Told(watch.engine, Process(child), reconcile_interval=3600.0)
    try:
        assert told.kinds(parent) == ["open"] * 3
        parent.do("[one.close() for one in made]")
        os.kill(child, 9)
        wait_until(lambda: told.kinds(parent) == ["open"] * 3 + ["close"] * 3, "the closes")
    finally:
        told.stop()


def test_a_tree_marks_no_socket_but_those_whose_close_is_told_of(root, watch):
    if watch.engine != "bcc":
        pytest.skip("core's marks end with their sockets")
    told = Told(watch.engine, root, reconcile_interval=3600.0)
    try:
        marks = told.watcher.choice.engine._bpf[b"of_tree"]
        told.settle()
        before = len(marks)
        root.do("a = listener(port=8080); b = socket.create_connection(('127.0.0.1', 8080)); c = bound(port=0)")
        if has_mptcp():
            root.do("made = [listener(port=8081, proto=262)]")
        assert "error" in root.attempt("bound(port=8080, kind=TCP)")  # asks who uses that port
        told.watcher.listeners()
        assert len(marks) == before + 1 + has_mptcp()
        root.do("[one.close() for one in (a, b, c, *made)]")
        told.settle()
        assert len(marks) == before
    finally:
        told.stop()


def count_calls(thing, name):
    """Counts the calls of a method from now on."""
    calls = []
    method = getattr(thing, name)

    def counted(*arguments):
        result = method(*arguments)
        calls.append(result)
        return result

    setattr(thing, name, counted)
    return lambda: len(calls)


class Process:
    """A child of an actor's, as a root."""

    def __init__(self, pid):
        self.pid = pid
