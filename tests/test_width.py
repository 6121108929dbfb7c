from hypothesis import given
from hypothesis import strategies as st

from portwatch.engines import places
from portwatch.model import Socket
from portwatch.scope import Only, Scope
from portwatch.width import EVERYTHING, Width, bits

RANGES = st.lists(
    st.tuples(st.integers(1, 65_535), st.integers(1, 65_535)).map(lambda ends: (min(ends), max(ends))),
    max_size=4,
)


def socket(port=8080, proto="tcp", netns=1):
    return Socket(None, None, netns, proto, "ipv4", "127.0.0.1", port)


@given(RANGES, st.integers(0, 65_535))
def test_bits_of_ranges_are_their_ports(ranges, port):
    assert bits(ranges) >> port & 1 == any(first <= port <= last for first, last in ranges)


@given(RANGES, RANGES, st.integers(1, 65_535))
def test_a_scopes_width_holds_the_ports_that_it_wants(wanted, unwanted, port):
    scope = Scope(port=Only(tuple(wanted), tuple(unwanted)))
    is_wanted = not wanted or any(first <= port <= last for first, last in wanted)
    is_unwanted = any(first <= port <= last for first, last in unwanted)
    assert scope.width.holds(socket(port), 0) == (is_wanted and not is_unwanted)


def test_protocols_and_namespaces_narrow_it():
    width = Scope(proto=Only(("tcp",)), netns=Only((1, 2))).width
    assert width.holds(socket(), 0)
    assert not width.holds(socket(proto="udp"), 0)
    assert not width.holds(socket(netns=3), 0)


@given(*[st.lists(st.sampled_from(["tcp", "udp"]))] * 2, *[st.lists(st.integers(1, 3), max_size=3)] * 2)
def test_a_scopes_width_holds_the_protocols_and_namespaces_that_it_wants(protos, no_protos, inodes, no_inodes):
    width = Scope(
        proto=Only(tuple(protos), tuple(no_protos)), netns=Only(tuple(inodes), tuple(no_inodes))
    ).width
    for proto in ("tcp", "udp"):
        for inode in (1, 2, 3):
            is_wanted = (not protos or proto in protos) and (not inodes or inode in inodes)
            assert width.holds(socket(proto=proto, netns=inode), 0) == (
                is_wanted and proto not in no_protos and inode not in no_inodes
            )


def test_what_a_socket_cannot_tell_does_not_narrow_it():
    assert Scope(process=Only(("nginx",)), exposure=Only(("all",)), container=Only(("4f",))).width == EVERYTHING


widths = st.builds(
    Width,
    st.booleans(),
    st.none() | RANGES.map(bits),
    st.none() | st.frozensets(st.sampled_from(["tcp", "udp"])),
    st.none() | st.frozensets(st.integers(1, 3)),
) | st.builds(Width, without=st.frozensets(st.integers(1, 3)))
sockets = st.builds(socket, st.integers(1, 65_535), st.sampled_from(["tcp", "udp"]), st.integers(1, 3))


@given(widths, widths, sockets, st.integers(0, 1))
def test_two_widths_together_hold_whatever_either_holds(one, two, socket, trees):
    if one.holds(socket, trees) or two.holds(socket, trees):
        assert (one | two).holds(socket, trees)


@given(widths)
def test_what_is_told_to_the_programs_is_the_width_itself(width):
    told = places.Places()
    told.fill(width)
    if width.ports is not None:
        assert int.from_bytes(bytes(told.ports), "little") == width.ports
    assert set(told.namespaces) - {0} == (width.without if width.namespaces is None else width.namespaces)


def test_more_namespaces_than_there_is_room_for_are_all_of_them():
    width = Width(namespaces=frozenset(range(1, 10)))
    assert places.attainable(width, trees=True) == EVERYTHING
    fewer = Width(namespaces=frozenset(range(1, 9)))
    assert places.attainable(fewer, trees=True) == fewer
    assert places.attainable(Width(without=frozenset(range(1, 10))), trees=True) == EVERYTHING
