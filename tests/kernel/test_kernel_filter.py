"""What of a scope the kernel itself decides: what lies outside costs the reader nothing."""

import pytest
from support import Watch, has_mptcp, wait_until

from portwatch.filters.filter import Filter
from portwatch.filters.scope import Scope
from portwatch.linux import cgroups

STORM = "[listener(port=port).close() for _ in range(5) for port in range(9001, 9100)]"
UDP_STORM = "[bound(port=port).close() for _ in range(5) for port in range(9001, 9100)]"
ADDRESS = "struct.pack('=HH4s8x', socket.AF_INET, socket.htons(9000), bytes([127, 0, 0, 1]))"
ID = "5e" * 32
FAILING_STORM = f"[libc.bind(refused.fileno(), {ADDRESS}, 16) for _ in range(200)]"


class Narrow(Watch):
    """A watcher with a scope, beside nobody who asks for more."""

    def __init__(self, engine, **scope):
        super().__init__(engine, scope=Scope(**scope), reconcile_interval=3600.0)

    def told(self, *ports):
        """Waits until this is what was told, as (kind, port)."""
        wait_until(
            lambda: [(one.kind, one.port) for one in self._seen] == [*ports], f"{ports}, not {self._seen}"
        )

    def told_of(self, actor, *ports):
        """The same of an actor's namespace."""
        wait_until(lambda: self.of(actor) == [*ports], f"{ports}, not {self._seen}")

    def records(self):
        """What the kernel tells the engine from now on."""
        engine, found = self.watcher.choice.engine, []
        read = engine.read

        def keep(timeout):
            records = read(timeout)
            found.extend(records)
            return records

        engine.read = keep
        self.watcher.listeners()  # ends a read that had begun
        return found

    def of(self, actor):
        """(kind, port) of what was told of its namespace."""
        return [(one.kind, one.port) for one in self._seen if actor.owns(one)]


@pytest.fixture
def cgroup(watch, make_cgroup):
    """Makes a container's cgroup, where its id settles who lives in it."""
    if not cgroups.is_v2_only():
        pytest.skip("with hierarchies of v1 the reader decides about cgroups")
    if watch.info.has_limit("outside"):
        pytest.skip("sockets cannot be marked here, so the reader decides about cgroups")
    return lambda *actors: make_cgroup(f"docker-{ID}.scope", *actors)


@pytest.fixture
def narrow(watch):
    """Makes one; poll is told of nothing by the kernel, which so has nothing to decide."""
    if watch.engine == "poll":
        pytest.skip("poll asks the kernel, which so decides nothing for it")
    made = []

    def make(**scope):
        made.append(Narrow(watch.engine, **scope))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def ports(*numbers):
    return Filter(tuple((number, number) for number in numbers))


@pytest.mark.parametrize(
    ("scope", "storm"),
    [
        ({"port": ports(8080)}, STORM),
        ({"port": ports(8080)}, UDP_STORM),
        ({"port": ports(8080)}, FAILING_STORM),
        ({"port": Filter((), ((9000, 9999),))}, STORM),
        ({"proto": Filter(("tcp",))}, UDP_STORM),
        ({"proto": Filter(("udp",))}, STORM),
        ({"proto": Filter((), ("udp",))}, UDP_STORM),
    ],
    ids=["port", "port-udp", "port-failures", "not-port", "proto-tcp", "proto-udp", "not-proto"],
)
def test_a_storm_outside_of_a_scope_wakes_nobody(narrow, actor, scope, storm):
    one = narrow(**scope)
    actor.do("taken, refused = listener(port=9000), socket.socket()")
    actor.do("s = bound(port=8080)" if scope.get("proto") == Filter(("udp",)) else "s = listener(port=8080)")
    wait_until(lambda: ("open", 8080) in one.of(actor), "the open")
    records = one.records()
    actor.do(storm)
    actor.do("s.close()")
    wait_until(lambda: ("close", 8080) in one.of(actor), "the close")
    assert {record.socket.port for record in records if record.socket.netns == actor.netns} == {8080}


def test_a_storm_in_another_namespace_wakes_nobody(narrow, actor, make_actor):
    one, other = narrow(netns=Filter((actor.netns,))), make_actor()
    records = one.records()
    other.do(STORM)
    actor.do("s = listener(port=8080)")
    actor.do("s.close()")
    one.told(("open", 8080), ("close", 8080))
    assert {record.socket.netns for record in records} == {actor.netns}


def test_a_storm_in_a_namespace_that_is_not_wanted_wakes_nobody(narrow, actor, make_actor):
    other = make_actor()
    one = narrow(netns=Filter((), (other.netns,)))
    records = one.records()
    other.do(STORM)
    actor.do("s = listener(port=8080)")
    actor.do("s.close()")
    one.told_of(actor, ("open", 8080), ("close", 8080))
    assert other.netns not in {record.socket.netns for record in records}


def test_watchers_of_different_ports_hear_all_of_theirs(narrow, actor):
    one, two = narrow(port=ports(8080)), narrow(port=ports(8081))
    assert one.watcher.choice is two.watcher.choice
    for number in (8080, 8081, 8082):
        actor.do(f"s = listener(port={number})")
        actor.do("s.close()")
    one.told_of(actor, ("open", 8080), ("close", 8080))
    two.told_of(actor, ("open", 8081), ("close", 8081))


def test_who_comes_later_is_told_what_is_open_where_nobody_listened_before(narrow, actor):
    actor.do("a, b = listener(port=8080), listener(port=8081)")
    one = narrow(port=ports(8080), netns=Filter((actor.netns,)))
    one.told(("open", 8080))
    two = narrow(port=ports(8081), netns=Filter((actor.netns,)))
    two.told(("open", 8081))
    actor.do("a.close(), b.close()")
    two.told(("open", 8081), ("close", 8081))
    one.told(("open", 8080), ("close", 8080))


def test_what_others_stop_asking_for_is_no_drift(narrow, actor):
    one, two = narrow(port=ports(8080)), narrow(port=ports(8081))
    actor.do("a, b = listener(port=8080), listener(port=8081)")
    one.told_of(actor, ("open", 8080))
    two.told_of(actor, ("open", 8081))
    two.stop()
    found = [
        listener.socket.port for listener in one.watcher.listeners() if listener.socket.netns == actor.netns
    ]
    assert found == [8080]
    actor.do("a.close(), b.close()")
    one.told_of(actor, ("open", 8080), ("close", 8080))
    one.watcher.listeners()
    assert not one.watcher.counts.drift


def test_sockets_of_one_port_are_counted_within_a_scope(narrow, actor):
    one = narrow(port=ports(8080))
    option = "(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)"
    actor.do(f"made = [listener(port=8080, options=[{option}]) for _ in range(3)]")
    actor.do("[each.close() for each in made]")
    wait_until(lambda: len(one.of(actor)) == 6, "all of it")
    assert [event.sockets for event in one._seen if actor.owns(event)] == [1, 2, 3, 2, 1, 0]


def test_an_mptcp_listener_is_one_of_tcp(narrow, actor):
    if not has_mptcp():
        pytest.skip("this kernel has no MPTCP")
    one = narrow(port=ports(8080), proto=Filter(("tcp",)))
    actor.do("s = listener(port=8080, proto=262)")
    actor.do("s.close()")
    one.told_of(actor, ("open", 8080), ("close", 8080))


def test_a_port_that_the_kernel_chose_is_closed_within_its_scope(narrow, actor):
    one = narrow(port=Filter(((1024, 65_535),)), netns=Filter((actor.netns,)))
    actor.do("s = socket.socket(); s.listen()")
    port = actor.do("s.getsockname()[1]")
    actor.do("s.close()")
    one.told(("open", port), ("close", port))


def test_a_failure_is_told_with_its_holder_where_only_that_port_is_asked_for(narrow, actor):
    one = narrow(port=ports(8080))
    if one.watcher.choice.engine.info.has_limit("failures"):
        pytest.skip("failures are not seen here")
    actor.do("s = listener(port=8080)")
    assert "error" in actor.attempt("bound(port=8080, kind=TCP)")
    one.told_of(actor, ("open", 8080), ("bind_failed", 8080))
    assert [holder.pid for holder in one._seen[-1].held_by] == [actor.pid]


@pytest.mark.parametrize("storm", [STORM, UDP_STORM, FAILING_STORM], ids=["tcp", "udp", "failures"])
@pytest.mark.parametrize("option", ["cgroup", "container", "not-cgroup", "not-container"])
def test_a_storm_in_a_cgroup_that_is_not_wanted_wakes_nobody(narrow, make_actor, cgroup, option, storm):
    actor, other = make_actor(), make_actor()
    is_negative, name = option.startswith("not-"), option.removeprefix("not-")
    path = cgroup(other if is_negative else actor)
    named = (f"/{path.name}" if name == "cgroup" else ID,)
    one = narrow(**{name: Filter((), named) if is_negative else Filter(named)})
    other.do("taken, refused = listener(port=9000), socket.socket()")
    one.watcher.listeners()  # by now, who is outside has been found out
    records = one.records()
    other.do(storm)
    actor.do("s = listener(port=8080)")
    actor.do("s.close()")
    one.told_of(actor, ("open", 8080), ("close", 8080))
    assert other.netns not in {record.socket.netns for record in records}


def test_a_container_that_begins_again_is_heard(narrow, make_actor, cgroup):
    one = narrow(container=Filter((ID[:12],)))
    for _ in range(2):
        actor = make_actor()
        path = cgroup(actor)
        actor.do("s = listener(port=8080); s.close()")
        one.told_of(actor, ("open", 8080), ("close", 8080))
        actor.close()
        wait_until(lambda path=path: not (path / "cgroup.procs").read_text(), "its end")
        path.rmdir()


def test_a_close_follows_its_open_out_of_a_cgroup_and_into_it(narrow, make_actor, cgroup):
    inside, outside = make_actor(), make_actor()
    cgroup(inside)
    one = narrow(container=Filter((ID,)))
    for actor, there in ((inside, outside), (outside, inside)):
        actor.do("s = listener(port=9000); s.close()")
        one.watcher.listeners()  # by now, who is outside has been found out
        actor.do("s = listener(port=8080)")
        there.do(f"fd = libc.syscall(438, libc.syscall(434, {actor.pid}, 0), {actor.do('s.fileno()')}, 0)")
        actor.do("s.close()")
        there.do("os.close(fd)")
    one.told_of(inside, *[(kind, port) for port in (9000, 8080) for kind in ("open", "close")])
    assert not one.of(outside)


@pytest.mark.parametrize("proto", [0, 262], ids=["tcp", "mptcp"])
def test_what_nobody_wanted_is_told_with_its_close_to_who_comes_later(narrow, make_actor, cgroup, proto):
    if proto and not has_mptcp():
        pytest.skip("this kernel has no MPTCP")
    inside, outside = make_actor(), make_actor()
    cgroup(inside)
    one = narrow(container=Filter((ID,)))
    outside.do("listener(port=9000).close()")
    one.watcher.listeners()  # by now, who is outside has been found out
    outside.do(f"s = listener(port=8080, proto={proto})")
    two = narrow(container=Filter((), (ID,)), netns=Filter((outside.netns,)))
    two.told(("open", 8080))
    outside.do("s.close()")
    two.told(("open", 8080), ("close", 8080))
    assert not one.of(outside)


def test_what_is_passed_into_a_cgroup_is_no_drift(narrow, make_actor, cgroup):
    inside, outside = make_actor(), make_actor()
    cgroup(inside)
    one = narrow(container=Filter((ID,)))
    outside.do("listener(port=9000).close()")
    one.watcher.listeners()  # by now, who is outside has been found out
    outside.do("s = listener(port=8080)")
    outside.do("t = bound(port=8081)")
    inside.do(f"fd = libc.syscall(438, libc.syscall(434, {outside.pid}, 0), {outside.do('s.fileno()')}, 0)")
    found = [listener.port for listener in one.watcher.listeners() if listener.socket.netns == outside.netns]
    assert found == [8080]
    outside.do("s.close(), t.close()")
    inside.do("os.close(fd)")
    wait_until(lambda: ("close", 8080) in one.of(outside), "its close")
    drift = one.watcher.counts.drift
    one.watcher.listeners()
    assert one.watcher.counts.drift == drift
