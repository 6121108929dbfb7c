from hypothesis import given
from hypothesis import strategies as st

from portwatch.engines import filter_map
from portwatch.event import Listener
from portwatch.filters.cgroup_filter import CgroupFilter
from portwatch.filters.filter import Filter
from portwatch.filters.kernel_filter import UNRESTRICTED, KernelFilter, port_bits
from portwatch.filters.scope import Scope
from portwatch.linux import cgroups
from portwatch.linux.containers import CgroupInfo
from portwatch.model import Process, Socket

RANGES = st.lists(
    st.tuples(st.integers(1, 65_535), st.integers(1, 65_535)).map(lambda ends: (min(ends), max(ends))),
    max_size=4,
)


def socket(port=8080, proto="tcp", netns=1):
    return Socket(None, None, netns, proto, "ipv4", "127.0.0.1", port)


def holds(width, socket, trees=0, processes=()):
    return width.passes(socket, trees, processes)


def listener(*homes):
    holders = tuple(process(home) for home in homes)
    return Listener("event", None, socket(), 1, holders[0] if holders else None, holders)


def process(home):
    return Process(1, None, "nginx", 0, None, *home)


@given(RANGES, st.integers(0, 65_535))
def test_bits_of_ranges_are_their_ports(ranges, port):
    assert port_bits(ranges) >> port & 1 == any(first <= port <= last for first, last in ranges)


@given(RANGES, RANGES, st.integers(1, 65_535))
def test_a_scopes_width_holds_the_ports_that_it_wants(wanted, unwanted, port):
    scope = Scope(port=Filter(tuple(wanted), tuple(unwanted)))
    is_wanted = not wanted or any(first <= port <= last for first, last in wanted)
    is_unwanted = any(first <= port <= last for first, last in unwanted)
    assert holds(scope.kernel_filter, socket(port)) == (is_wanted and not is_unwanted)


def test_protocols_and_namespaces_narrow_it():
    width = Scope(proto=Filter(("tcp",)), netns=Filter((1, 2))).kernel_filter
    assert holds(width, socket())
    assert not holds(width, socket(proto="udp"))
    assert not holds(width, socket(netns=3))


@given(*[st.lists(st.sampled_from(["tcp", "udp"]))] * 2, *[st.lists(st.integers(1, 3), max_size=3)] * 2)
def test_a_scopes_width_holds_the_protocols_and_namespaces_that_it_wants(protos, no_protos, inodes, no_inodes):
    width = Scope(
        proto=Filter(tuple(protos), tuple(no_protos)), netns=Filter(tuple(inodes), tuple(no_inodes))
    ).kernel_filter
    for proto in ("tcp", "udp"):
        for inode in (1, 2, 3):
            is_wanted = (not protos or proto in protos) and (not inodes or inode in inodes)
            assert holds(width, socket(proto=proto, netns=inode)) == (
                is_wanted and proto not in no_protos and inode not in no_inodes
            )


def test_what_only_the_reader_can_tell_does_not_narrow_it():
    assert Scope(process=Filter(("nginx",)), exposure=Filter(("all",))).kernel_filter == UNRESTRICTED


some_places = st.builds(
    CgroupInfo,
    st.none() | st.sampled_from(["/", "/a", "/a/b", "/ab"]),
    st.none() | st.sampled_from(["4f", "5e"]),
)
CGROUPS = st.lists(st.sampled_from(["/", "/a", "/a/b"]), max_size=2).map(tuple)
IDS = st.lists(st.sampled_from(["4", "4f", "5e"]), max_size=2).map(tuple)
homes = st.builds(CgroupFilter, st.builds(Filter, CGROUPS, CGROUPS), st.builds(Filter, IDS, IDS))


@given(homes, some_places)
def test_a_scopes_width_holds_whoever_lives_where_it_wants_and_nobody_else(wanted, place):
    scope = Scope(cgroup=wanted.cgroup, container=wanted.container)
    assert holds(scope.kernel_filter, socket(), 0, [process(place)]) == scope.admits_process(process(place))


@given(homes, st.lists(some_places, max_size=3))
def test_a_scopes_width_holds_every_listener_that_the_scope_admits(wanted, held):
    scope = Scope(cgroup=wanted.cgroup, container=wanted.container)
    if scope.admits_listener(one := listener(*held)):
        assert holds(scope.kernel_filter, one.socket, 0, one.holders)


widths = st.builds(
    KernelFilter,
    st.booleans(),
    st.none() | RANGES.map(port_bits),
    st.none() | st.frozensets(st.sampled_from(["tcp", "udp"])),
    st.none() | st.frozensets(st.integers(1, 3)),
) | st.builds(
    KernelFilter,
    excluded_namespaces=st.frozensets(st.integers(1, 3)),
    cgroups=st.none() | st.frozensets(homes, min_size=1, max_size=2),
)
sockets = st.builds(socket, st.integers(1, 65_535), st.sampled_from(["tcp", "udp"]), st.integers(1, 3))


@given(widths, widths, sockets, st.integers(0, 1), st.lists(some_places, max_size=2))
def test_two_widths_together_hold_whatever_either_holds(one, two, socket, trees, held):
    processes = [process(place) for place in held]
    if one.passes(socket, trees, processes) or two.passes(socket, trees, processes):
        assert (one | two).passes(socket, trees, processes)


@given(widths)
def test_what_is_told_to_the_programs_is_the_width_itself(width):
    told = filter_map.FilterMap()
    told.load(width)
    if width.ports is not None:
        assert int.from_bytes(bytes(told.ports), "little") == width.ports
    assert set(told.namespaces) - {0} == (
        width.excluded_namespaces if width.namespaces is None else width.namespaces
    )


def test_more_namespaces_than_there_is_room_for_are_all_of_them():
    width = KernelFilter(namespaces=frozenset(range(1, 10)))
    assert filter_map.supported(width, has_marks=True) == UNRESTRICTED
    fewer = KernelFilter(namespaces=frozenset(range(1, 9)))
    assert filter_map.supported(fewer, has_marks=True) == fewer
    assert (
        filter_map.supported(KernelFilter(excluded_namespaces=frozenset(range(1, 10))), has_marks=True)
        == UNRESTRICTED
    )


def test_a_cgroup_that_lies_outside_is_said_to_and_no_longer_when_something_else_is_wanted(monkeypatch):
    monkeypatch.setattr(cgroups, "path_of", {8: "/a", 9: "/b"}.get)
    told = filter_map.FilterMap()
    width = Scope(cgroup=Filter(("/a",))).kernel_filter
    told.load(width)
    generation = told.generation
    told.exclude_cgroups(width, [8, 9, 10])
    assert set(told.excluded_cgroups) - {0} == {9}, "of 10, it is not known"
    told.load(Scope(cgroup=Filter(("/b",))).kernel_filter)
    assert set(told.excluded_cgroups) == {0}
    assert told.generation > generation


def test_what_is_wanted_by_cgroup_the_programs_keep_to_only_where_an_id_settles_it(monkeypatch):
    width = Scope(cgroup=Filter(("/a",))).kernel_filter
    monkeypatch.setattr(cgroups, "is_v2_only", lambda: True)
    assert filter_map.supported(width, has_marks=True) == width
    assert filter_map.supported(width, has_marks=False) == UNRESTRICTED
    monkeypatch.setattr(cgroups, "is_v2_only", lambda: False)
    assert filter_map.supported(width, has_marks=True) == UNRESTRICTED
