"""The kernel filter in the form that BPF programs read."""

from hypothesis import given
from hypothesis import strategies as st

from portwatch.engines.filter_map import FilterMap, supported
from portwatch.filters.filter import Filter
from portwatch.filters.kernel_filter import ALL_PORTS, UNRESTRICTED, KernelFilter
from portwatch.filters.scope import Scope
from portwatch.linux import cgroups

NAMESPACES = st.frozensets(st.integers(1, 3))


@given(st.integers(0, ALL_PORTS), NAMESPACES, st.booleans())
def test_loading_a_filter_writes_its_ports_and_namespaces_to_the_map(ports, namespaces, are_excluded):
    field = "excluded_namespaces" if are_excluded else "namespaces"
    filter_map = FilterMap()
    filter_map.load(KernelFilter(ports=ports, **{field: namespaces}))
    assert int.from_bytes(bytes(filter_map.ports), "little") == ports
    assert set(filter_map.namespaces) - {0} == namespaces


def test_a_filter_with_more_namespaces_than_fit_is_widened_to_all_namespaces():
    for field in ("namespaces", "excluded_namespaces"):
        too_many = KernelFilter(**{field: frozenset(range(1, 10))})
        assert supported(too_many, has_marks=True) == UNRESTRICTED
    fitting = KernelFilter(namespaces=frozenset(range(1, 9)))
    assert supported(fitting, has_marks=True) == fitting


def test_unwanted_cgroups_are_excluded_until_the_filter_changes(monkeypatch):
    monkeypatch.setattr(cgroups, "path_of", {8: "/a", 9: "/b"}.get)
    filter_map = FilterMap()
    kernel_filter = Scope(cgroup=Filter(("/a",))).kernel_filter
    filter_map.load(kernel_filter)
    generation = filter_map.generation
    filter_map.exclude_cgroups(kernel_filter, [8, 9, 10])
    assert set(filter_map.excluded_cgroups) - {0} == {9}, "the path of 10 is unknown"
    filter_map.load(Scope(cgroup=Filter(("/b",))).kernel_filter)
    assert set(filter_map.excluded_cgroups) == {0}
    assert filter_map.generation > generation


def test_a_cgroup_filter_is_supported_only_with_socket_marks_and_without_cgroup_v1(monkeypatch):
    kernel_filter = Scope(cgroup=Filter(("/a",))).kernel_filter
    monkeypatch.setattr(cgroups, "is_v2_only", lambda: True)
    assert supported(kernel_filter, has_marks=True) == kernel_filter
    assert supported(kernel_filter, has_marks=False) == UNRESTRICTED
    monkeypatch.setattr(cgroups, "is_v2_only", lambda: False)
    assert supported(kernel_filter, has_marks=True) == UNRESTRICTED
