"""The kernel filter: BPF programs drop records that are outside the scopes of all watchers."""

import pytest
from support import RecordingWatcher, has_mptcp, wait_until

from portwatch.filters.filter import Filter
from portwatch.filters.scope import Scope
from portwatch.linux import cgroups

STORM = "[listener(port=port).close() for _ in range(5) for port in range(9001, 9100)]"
UDP_STORM = "[bound(port=port).close() for _ in range(5) for port in range(9001, 9100)]"
ADDRESS = "struct.pack('=HH4s8x', socket.AF_INET, socket.htons(9000), bytes([127, 0, 0, 1]))"
CONTAINER_ID = "5e" * 32
FAILING_STORM = f"[libc.bind(refused.fileno(), {ADDRESS}, 16) for _ in range(200)]"


class ScopedWatcher(RecordingWatcher):
    """A recording watcher with a scope."""

    def __init__(self, engine, **scope):
        # The unusual reconcile interval keeps this watcher from sharing the unfiltered engine of `watch`.
        super().__init__(engine, scope=Scope(**scope), reconcile_interval=3600.0)

    def expect(self, *changes):
        """Wait until the events delivered so far are exactly these (kind, port) pairs."""
        wait_until(
            lambda: [(event.kind, event.port) for event in self.delivered] == [*changes],
            f"{changes}, not {self.delivered}",
        )

    def expect_from(self, actor, *changes):
        """Wait until the events from the actor's namespace are exactly these (kind, port) pairs."""
        wait_until(lambda: self.changes(actor) == [*changes], f"{changes}, not {self.delivered}")

    def capture_records(self):
        """Return a list to which every record that the engine reads from now on is added."""
        engine, captured = self.watcher.choice.engine, []
        read = engine.read

        def read_and_capture(timeout):
            records = read(timeout)
            captured.extend(records)
            return records

        engine.read = read_and_capture
        # `listeners` wakes the thread that reads events, so that it returns from the original `read`.
        self.watcher.listeners()
        return captured

    def changes(self, actor):
        """Return (kind, port) of each event from the actor's namespace."""
        return [(event.kind, event.port) for event in self.delivered if actor.owns(event)]


@pytest.fixture
def cgroup(watch, make_cgroup):
    """A function that makes a container's cgroup. Skips the test if BPF programs cannot filter by cgroup."""
    if not cgroups.is_v2_only():
        pytest.skip("a cgroup v1 hierarchy is mounted, so only user space filters by cgroup")
    if watch.info.has_limit("outside"):
        pytest.skip("this engine cannot mark sockets here, so only user space filters by cgroup")
    return lambda *actors: make_cgroup(f"docker-{CONTAINER_ID}.scope", *actors)


@pytest.fixture
def watch_scope(watch):
    """A function that starts a watcher with a scope."""
    if watch.engine == "poll":
        pytest.skip("poll has no filter in the kernel")
    watchers = []

    def start(**scope):
        watchers.append(ScopedWatcher(watch.engine, **scope))
        return watchers[-1]

    yield start
    for watcher in watchers:
        watcher.stop()


def port_filter(*numbers):
    return Filter(tuple((number, number) for number in numbers))


@pytest.mark.parametrize(
    ("scope", "storm"),
    [
        ({"port": port_filter(8080)}, STORM),
        ({"port": port_filter(8080)}, UDP_STORM),
        ({"port": port_filter(8080)}, FAILING_STORM),
        ({"port": Filter((), ((9000, 9999),))}, STORM),
        ({"proto": Filter(("tcp",))}, UDP_STORM),
        ({"proto": Filter(("udp",))}, STORM),
        ({"proto": Filter((), ("udp",))}, UDP_STORM),
    ],
    ids=["port", "port-udp", "port-failures", "not-port", "proto-tcp", "proto-udp", "not-proto"],
)
def test_activity_outside_a_scope_does_not_reach_user_space(watch_scope, actor, scope, storm):
    watcher = watch_scope(**scope)
    actor.do("taken, refused = listener(port=9000), socket.socket()")
    actor.do("s = bound(port=8080)" if scope.get("proto") == Filter(("udp",)) else "s = listener(port=8080)")
    wait_until(lambda: ("open", 8080) in watcher.changes(actor), "the open")
    records = watcher.capture_records()
    actor.do(storm)
    actor.do("s.close()")
    wait_until(lambda: ("close", 8080) in watcher.changes(actor), "the close")
    assert {record.socket.port for record in records if record.socket.netns == actor.netns} == {8080}


def test_activity_in_another_namespace_does_not_reach_user_space(watch_scope, actor, make_actor):
    watcher, other = watch_scope(netns=Filter((actor.netns,))), make_actor()
    records = watcher.capture_records()
    other.do(STORM)
    actor.do("s = listener(port=8080)")
    actor.do("s.close()")
    watcher.expect(("open", 8080), ("close", 8080))
    assert {record.socket.netns for record in records} == {actor.netns}


def test_activity_in_an_excluded_namespace_does_not_reach_user_space(watch_scope, actor, make_actor):
    other = make_actor()
    watcher = watch_scope(netns=Filter((), (other.netns,)))
    records = watcher.capture_records()
    other.do(STORM)
    actor.do("s = listener(port=8080)")
    actor.do("s.close()")
    watcher.expect_from(actor, ("open", 8080), ("close", 8080))
    assert other.netns not in {record.socket.netns for record in records}


def test_watchers_with_different_ports_each_get_their_events(watch_scope, actor):
    first, second = watch_scope(port=port_filter(8080)), watch_scope(port=port_filter(8081))
    assert first.watcher.choice is second.watcher.choice
    for number in (8080, 8081, 8082):
        actor.do(f"s = listener(port={number})")
        actor.do("s.close()")
    first.expect_from(actor, ("open", 8080), ("close", 8080))
    second.expect_from(actor, ("open", 8081), ("close", 8081))


def test_a_later_watcher_gets_open_listeners_that_the_filter_excluded_before(watch_scope, actor):
    actor.do("a, b = listener(port=8080), listener(port=8081)")
    first = watch_scope(port=port_filter(8080), netns=Filter((actor.netns,)))
    first.expect(("open", 8080))
    second = watch_scope(port=port_filter(8081), netns=Filter((actor.netns,)))
    second.expect(("open", 8081))
    actor.do("a.close(), b.close()")
    second.expect(("open", 8081), ("close", 8081))
    first.expect(("open", 8080), ("close", 8080))


def test_listeners_that_only_a_stopped_watcher_wanted_are_not_counted_as_drift(watch_scope, actor):
    first, second = watch_scope(port=port_filter(8080)), watch_scope(port=port_filter(8081))
    actor.do("a, b = listener(port=8080), listener(port=8081)")
    first.expect_from(actor, ("open", 8080))
    second.expect_from(actor, ("open", 8081))
    second.stop()
    assert [listener.socket.port for listener in first.listeners(actor)] == [8080]
    actor.do("a.close(), b.close()")
    first.expect_from(actor, ("open", 8080), ("close", 8080))
    first.watcher.listeners()
    assert not first.watcher.counts.drift


def test_reuseport_sockets_are_counted_within_a_scope(watch_scope, actor):
    watcher = watch_scope(port=port_filter(8080))
    option = "(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)"
    actor.do(f"socks = [listener(port=8080, options=[{option}]) for _ in range(3)]")
    actor.do("[s.close() for s in socks]")
    wait_until(lambda: len(watcher.changes(actor)) == 6, "six events")
    assert [event.sockets for event in watcher.delivered if actor.owns(event)] == [1, 2, 3, 2, 1, 0]


def test_a_scope_of_tcp_includes_mptcp_listeners(watch_scope, actor):
    if not has_mptcp():
        pytest.skip("this kernel has no MPTCP")
    watcher = watch_scope(port=port_filter(8080), proto=Filter(("tcp",)))
    actor.do("s = listener(port=8080, proto=262)")
    actor.do("s.close()")
    watcher.expect_from(actor, ("open", 8080), ("close", 8080))


def test_the_close_of_an_autobound_port_passes_the_port_filter(watch_scope, actor):
    watcher = watch_scope(port=Filter(((1024, 65_535),)), netns=Filter((actor.netns,)))
    actor.do("s = socket.socket(); s.listen()")
    port = actor.do("s.getsockname()[1]")
    actor.do("s.close()")
    watcher.expect(("open", port), ("close", port))


def test_a_failed_bind_within_a_port_scope_is_reported_with_the_holder(watch_scope, actor):
    watcher = watch_scope(port=port_filter(8080))
    if watcher.watcher.choice.engine.info.has_limit("failures"):
        pytest.skip("this engine reports no failures")
    actor.do("s = listener(port=8080)")
    assert "error" in actor.attempt("bound(port=8080, kind=TCP)")
    watcher.expect_from(actor, ("open", 8080), ("bind_failed", 8080))
    assert [holder.pid for holder in watcher.delivered[-1].held_by] == [actor.pid]


@pytest.mark.parametrize("storm", [STORM, UDP_STORM, FAILING_STORM], ids=["tcp", "udp", "failures"])
@pytest.mark.parametrize("option", ["cgroup", "container", "not-cgroup", "not-container"])
def test_activity_in_an_excluded_cgroup_does_not_reach_user_space(
    watch_scope, make_actor, cgroup, option, storm
):
    actor, other = make_actor(), make_actor()
    is_negative, name = option.startswith("not-"), option.removeprefix("not-")
    path = cgroup(other if is_negative else actor)
    named = (f"/{path.name}" if name == "cgroup" else CONTAINER_ID,)
    watcher = watch_scope(**{name: Filter((), named) if is_negative else Filter(named)})
    other.do("taken, refused = listener(port=9000), socket.socket()")
    watcher.watcher.listeners()  # after this, the kernel filter excludes the other cgroups
    records = watcher.capture_records()
    other.do(storm)
    actor.do("s = listener(port=8080)")
    actor.do("s.close()")
    watcher.expect_from(actor, ("open", 8080), ("close", 8080))
    assert other.netns not in {record.socket.netns for record in records}


def test_a_restarted_container_is_reported(watch_scope, make_actor, cgroup):
    watcher = watch_scope(container=Filter((CONTAINER_ID[:12],)))
    for _ in range(2):
        actor = make_actor()
        path = cgroup(actor)
        actor.do("s = listener(port=8080); s.close()")
        watcher.expect_from(actor, ("open", 8080), ("close", 8080))
        actor.close()
        wait_until(lambda path=path: not (path / "cgroup.procs").read_text(), "the cgroup to be empty")
        path.rmdir()


def test_a_close_by_a_process_in_another_cgroup_is_reported_only_if_the_open_was(
    watch_scope, make_actor, cgroup
):
    inside, outside = make_actor(), make_actor()
    cgroup(inside)
    watcher = watch_scope(container=Filter((CONTAINER_ID,)))
    for opener, closer in ((inside, outside), (outside, inside)):
        opener.do("s = listener(port=9000); s.close()")
        watcher.watcher.listeners()  # after this, the kernel filter excludes the other cgroups
        opener.do("s = listener(port=8080)")
        closer.do(f"fd = take_descriptor({opener.pid}, {opener.do('s.fileno()')})")
        opener.do("s.close()")
        closer.do("os.close(fd)")
    watcher.expect_from(inside, *[(kind, port) for port in (9000, 8080) for kind in ("open", "close")])
    assert not watcher.changes(outside)


@pytest.mark.parametrize("proto", [0, 262], ids=["tcp", "mptcp"])
def test_a_later_watcher_gets_a_listener_that_was_excluded_before_and_its_close(
    watch_scope, make_actor, cgroup, proto
):
    if proto and not has_mptcp():
        pytest.skip("this kernel has no MPTCP")
    inside, outside = make_actor(), make_actor()
    cgroup(inside)
    first = watch_scope(container=Filter((CONTAINER_ID,)))
    outside.do("listener(port=9000).close()")
    first.watcher.listeners()  # after this, the kernel filter excludes the other cgroups
    outside.do(f"s = listener(port=8080, proto={proto})")
    second = watch_scope(container=Filter((), (CONTAINER_ID,)), netns=Filter((outside.netns,)))
    second.expect(("open", 8080))
    outside.do("s.close()")
    second.expect(("open", 8080), ("close", 8080))
    assert not first.changes(outside)


def test_a_listener_passed_into_a_cgroup_is_counted_as_drift_only_once(watch_scope, make_actor, cgroup):
    inside, outside = make_actor(), make_actor()
    cgroup(inside)
    watcher = watch_scope(container=Filter((CONTAINER_ID,)))
    outside.do("listener(port=9000).close()")
    watcher.watcher.listeners()  # after this, the kernel filter excludes the other cgroups
    outside.do("s = listener(port=8080)")
    outside.do("t = bound(port=8081)")
    inside.do(f"fd = take_descriptor({outside.pid}, {outside.do('s.fileno()')})")
    assert [listener.socket.port for listener in watcher.listeners(outside)] == [8080]
    outside.do("s.close(), t.close()")
    inside.do("os.close(fd)")
    wait_until(lambda: ("close", 8080) in watcher.changes(outside), "the close")
    drift = watcher.watcher.counts.drift.copy()
    watcher.watcher.listeners()
    assert watcher.watcher.counts.drift == drift
