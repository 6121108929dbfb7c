"""A kernel filter passes everything that its scope admits. For most fields it passes nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from portwatch.event import Listener
from portwatch.filters.cgroup_filter import CgroupFilter
from portwatch.filters.filter import Filter
from portwatch.filters.kernel_filter import UNRESTRICTED, KernelFilter, port_bits
from portwatch.filters.scope import Scope
from portwatch.linux.containers import CgroupInfo
from portwatch.model import Process, Socket

RANGES = st.lists(
    st.tuples(st.integers(1, 65_535), st.integers(1, 65_535)).map(lambda ends: (min(ends), max(ends))),
    max_size=4,
)


def socket(port=8080, proto="tcp", netns=1):
    return Socket(None, None, netns, proto, "ipv4", "127.0.0.1", port)


def process(cgroup_info):
    return Process(1, None, "nginx", 0, None, *cgroup_info)


def listener(cgroup_infos):
    holders = tuple(map(process, cgroup_infos))
    return Listener("event", None, socket(), 1, holders[0] if holders else None, holders)


def passes(kernel_filter, socket, trees=0, processes=()):
    return kernel_filter.passes(socket, trees, processes)


@given(RANGES, st.integers(0, 65_535))
def test_port_bits_has_a_bit_for_every_port_in_the_ranges(ranges, port):
    assert port_bits(ranges) >> port & 1 == any(first <= port <= last for first, last in ranges)


@given(RANGES, RANGES, st.integers(1, 65_535))
def test_exactly_the_ports_of_the_scope_pass(included, excluded, port):
    scope = Scope(port=Filter(tuple(included), tuple(excluded)))
    is_included = not included or any(first <= port <= last for first, last in included)
    is_excluded = any(first <= port <= last for first, last in excluded)
    assert passes(scope.kernel_filter, socket(port)) == (is_included and not is_excluded)


def test_protocol_and_namespace_must_both_match():
    kernel_filter = Scope(proto=Filter(("tcp",)), netns=Filter((1, 2))).kernel_filter
    assert passes(kernel_filter, socket())
    assert not passes(kernel_filter, socket(proto="udp"))
    assert not passes(kernel_filter, socket(netns=3))


@given(*[st.lists(st.sampled_from(["tcp", "udp"]))] * 2, *[st.lists(st.integers(1, 3), max_size=3)] * 2)
def test_exactly_the_protocols_and_namespaces_of_the_scope_pass(protos, no_protos, inodes, no_inodes):
    kernel_filter = Scope(
        proto=Filter(tuple(protos), tuple(no_protos)), netns=Filter(tuple(inodes), tuple(no_inodes))
    ).kernel_filter
    for proto in ("tcp", "udp"):
        for inode in (1, 2, 3):
            is_included = (not protos or proto in protos) and (not inodes or inode in inodes)
            assert passes(kernel_filter, socket(proto=proto, netns=inode)) == (
                is_included and proto not in no_protos and inode not in no_inodes
            )


def test_fields_that_the_kernel_cannot_evaluate_do_not_restrict_a_kernel_filter():
    assert Scope(process=Filter(("nginx",)), exposure=Filter(("all",))).kernel_filter == UNRESTRICTED


CGROUP_INFOS = st.builds(
    CgroupInfo,
    st.none() | st.sampled_from(["/", "/a", "/a/b", "/ab"]),
    st.none() | st.sampled_from(["4f", "5e"]),
)
PATHS = st.lists(st.sampled_from(["/", "/a", "/a/b"]), max_size=2).map(tuple)
IDS = st.lists(st.sampled_from(["4", "4f", "5e"]), max_size=2).map(tuple)
CGROUP_FILTERS = st.builds(CgroupFilter, st.builds(Filter, PATHS, PATHS), st.builds(Filter, IDS, IDS))


@given(CGROUP_FILTERS, CGROUP_INFOS)
def test_a_single_process_passes_exactly_if_the_scope_admits_it(cgroup_filter, cgroup_info):
    scope = Scope(cgroup=cgroup_filter.cgroup, container=cgroup_filter.container)
    member = process(cgroup_info)
    assert passes(scope.kernel_filter, socket(), 0, [member]) == scope.admits_process(member)


@given(CGROUP_FILTERS, st.lists(CGROUP_INFOS, max_size=3))
def test_every_listener_that_the_scope_admits_passes(cgroup_filter, cgroup_infos):
    scope = Scope(cgroup=cgroup_filter.cgroup, container=cgroup_filter.container)
    candidate = listener(cgroup_infos)
    if scope.admits_listener(candidate):
        assert passes(scope.kernel_filter, candidate.socket, 0, candidate.holders)


def test_a_socket_is_excluded_only_if_all_its_processes_are_excluded():
    kernel_filter = Scope(cgroup=Filter((), ("/a",))).kernel_filter
    excluded, other = process(CgroupInfo("/a")), process(CgroupInfo("/b"))
    assert not passes(kernel_filter, socket(), 0, [excluded, excluded])
    assert passes(kernel_filter, socket(), 0, [excluded, other])


KERNEL_FILTERS = st.builds(
    KernelFilter,
    st.booleans(),
    st.none() | RANGES.map(port_bits),
    st.none() | st.frozensets(st.sampled_from(["tcp", "udp"])),
    st.none() | st.frozensets(st.integers(1, 3)),
) | st.builds(
    KernelFilter,
    excluded_namespaces=st.frozensets(st.integers(1, 3)),
    cgroups=st.none() | st.frozensets(CGROUP_FILTERS, min_size=1, max_size=2),
)
SOCKETS = st.builds(socket, st.integers(1, 65_535), st.sampled_from(["tcp", "udp"]), st.integers(1, 3))


@given(KERNEL_FILTERS, KERNEL_FILTERS, SOCKETS, st.integers(0, 1), st.lists(CGROUP_INFOS, max_size=2))
def test_a_union_passes_everything_that_either_filter_passes(first, second, socket, trees, cgroup_infos):
    processes = [process(cgroup_info) for cgroup_info in cgroup_infos]
    if first.passes(socket, trees, processes) or second.passes(socket, trees, processes):
        assert (first | second).passes(socket, trees, processes)
