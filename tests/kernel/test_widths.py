"""What of a scope the kernel itself decides: what lies outside costs the reader nothing."""

import pytest
from support import Watch, has_mptcp, until

from portwatch.scope import Only, Scope

STORM = "[listener(port=port).close() for _ in range(5) for port in range(9001, 9100)]"
UDP_STORM = "[bound(port=port).close() for _ in range(5) for port in range(9001, 9100)]"
ADDRESS = "struct.pack('=HH4s8x', socket.AF_INET, socket.htons(9000), bytes([127, 0, 0, 1]))"
FAILING_STORM = f"[libc.bind(refused.fileno(), {ADDRESS}, 16) for _ in range(200)]"


class Narrow(Watch):
    """A watcher with a scope, beside nobody who asks for more."""

    def __init__(self, engine, **scope):
        super().__init__(engine, scope=Scope(**scope), reconcile_interval=3600.0)

    def told(self, *ports):
        """Waits until this is what was told, as (kind, port)."""
        until(lambda: [(one.kind, one.port) for one in self._seen] == [*ports], f"{ports}, not {self._seen}")

    def told_of(self, actor, *ports):
        """The same of an actor's namespace."""
        until(lambda: self.of(actor) == [*ports], f"{ports}, not {self._seen}")

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
    return Only(tuple((number, number) for number in numbers))


@pytest.mark.parametrize(
    ("scope", "storm"),
    [
        ({"port": ports(8080)}, STORM),
        ({"port": ports(8080)}, UDP_STORM),
        ({"port": ports(8080)}, FAILING_STORM),
        ({"port": Only((), ((9000, 9999),))}, STORM),
        ({"proto": Only(("tcp",))}, UDP_STORM),
        ({"proto": Only(("udp",))}, STORM),
        ({"proto": Only((), ("udp",))}, UDP_STORM),
    ],
    ids=["port", "port-udp", "port-failures", "not-port", "proto-tcp", "proto-udp", "not-proto"],
)
def test_a_storm_outside_of_a_scope_wakes_nobody(narrow, actor, scope, storm):
    one = narrow(**scope)
    actor.do("taken, refused = listener(port=9000), socket.socket()")
    actor.do("s = bound(port=8080)" if scope.get("proto") == Only(("udp",)) else "s = listener(port=8080)")
    until(lambda: ("open", 8080) in one.of(actor), "the open")
    records = one.records()
    actor.do(storm)
    actor.do("s.close()")
    until(lambda: ("close", 8080) in one.of(actor), "the close")
    assert {record.socket.port for record in records if record.socket.netns == actor.netns} == {8080}


def test_a_storm_in_another_namespace_wakes_nobody(narrow, actor, make_actor):
    one, other = narrow(netns=Only((actor.netns,))), make_actor()
    records = one.records()
    other.do(STORM)
    actor.do("s = listener(port=8080)")
    actor.do("s.close()")
    one.told(("open", 8080), ("close", 8080))
    assert {record.socket.netns for record in records} == {actor.netns}


def test_a_storm_in_a_namespace_that_is_not_wanted_wakes_nobody(narrow, actor, make_actor):
    other = make_actor()
    one = narrow(netns=Only((), (other.netns,)))
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
    one = narrow(port=ports(8080), netns=Only((actor.netns,)))
    one.told(("open", 8080))
    two = narrow(port=ports(8081), netns=Only((actor.netns,)))
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
    until(lambda: len(one.of(actor)) == 6, "all of it")
    assert [event.sockets for event in one._seen if actor.owns(event)] == [1, 2, 3, 2, 1, 0]


def test_an_mptcp_listener_is_one_of_tcp(narrow, actor):
    if not has_mptcp():
        pytest.skip("this kernel has no MPTCP")
    one = narrow(port=ports(8080), proto=Only(("tcp",)))
    actor.do("s = listener(port=8080, proto=262)")
    actor.do("s.close()")
    one.told_of(actor, ("open", 8080), ("close", 8080))


def test_a_port_that_the_kernel_chose_is_closed_within_its_scope(narrow, actor):
    one = narrow(port=Only(((1024, 65_535),)), netns=Only((actor.netns,)))
    actor.do("s = socket.socket(); s.listen()")
    port = actor.do("s.getsockname()[1]")
    actor.do("s.close()")
    one.told(("open", port), ("close", port))


def test_a_failure_is_told_with_its_holder_where_only_that_port_is_asked_for(narrow, actor):
    one = narrow(port=ports(8080))
    if one.watcher.choice.engine.capabilities.lacks("failures"):
        pytest.skip("failures are not seen here")
    actor.do("s = listener(port=8080)")
    assert "error" in actor.attempt("bound(port=8080, kind=TCP)")
    one.told_of(actor, ("open", 8080), ("bind_failed", 8080))
    assert [holder.pid for holder in one._seen[-1].held_by] == [actor.pid]
