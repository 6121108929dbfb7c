"""A scope selects what a user sees: by port, process, container, namespace and so on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from portwatch.addresses import Exposure
from portwatch.event import Event, Listener
from portwatch.filters.cgroup_filter import CgroupFilter, is_in_cgroup, is_in_container
from portwatch.filters.filter import Filter
from portwatch.filters.kernel_filter import ALL_PORTS, KernelFilter, port_bits
from portwatch.model import PROTOCOLS, Process

PortRange = tuple[int, int]

_PROCESS_FIELDS = ("process", "cgroup", "container")


class _Subject(NamedTuple):
    """The values of a socket, of its opener and of its holders, with which a scope is compared."""

    port: int | None
    proto: str | None
    exposure: Exposure | None
    netns: int | None
    names: set[str | None]
    cgroups: set[str | None]
    containers: set[str | None]


@dataclass(frozen=True, slots=True)
class Scope:
    """A filter for each field. An event passes the scope if it passes the filters of all fields.

    If a filter includes several values, one of them must match. An unknown value matches neither `include` nor
    `exclude`. Process filters apply to the process that opened the port. A close therefore passes if the open
    passed, whichever process closes the port.
    """

    port: Filter[PortRange] = Filter()
    proto: Filter[str] = Filter()
    exposure: Filter[Exposure] = Filter()
    process: Filter[str] = Filter()
    """Shell patterns for the process name, such as `nginx*`."""
    cgroup: Filter[str] = Filter()
    """Paths from the root, such as `/system.slice`. A path matches its cgroup and all cgroups below."""
    container: Filter[str] = Filter()
    """Container ids, or the first characters of container ids."""
    netns: Filter[int] = Filter()
    """Inodes of `/proc/PID/ns/net`."""
    _restricted: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """Names of the fields that have a filter. Computed once, because it is needed for every event."""

    def __post_init__(self) -> None:
        restricted = tuple(name for name in _MATCHES if getattr(self, name) != Filter())
        object.__setattr__(self, "_restricted", restricted)

    @property
    def kernel_filter(self) -> KernelFilter:
        """The part of this scope that BPF programs can evaluate."""
        included_ports = port_bits(self.port.include) if self.port.include else ALL_PORTS
        included_protos = frozenset(self.proto.include or PROTOCOLS)
        included_netns, excluded_netns = frozenset(self.netns.include), frozenset(self.netns.exclude)
        cgroup_filter = CgroupFilter(self.cgroup, self.container)
        return KernelFilter(
            ports=None if self.port == Filter() else included_ports & ~port_bits(self.port.exclude),
            protos=None if self.proto == Filter() else included_protos.difference(self.proto.exclude),
            namespaces=included_netns - excluded_netns if included_netns else None,
            excluded_namespaces=frozenset() if included_netns else excluded_netns,
            cgroups=None if cgroup_filter == CgroupFilter() else frozenset([cgroup_filter]),
        )

    def admits(self, event: Event) -> bool:
        """Return True if the event passes. An event of kind `gap` always passes."""
        if not self._restricted or event.kind == "gap":
            return True
        name, cgroup, container = _opener(event)
        facts = _Subject(event.port, event.proto, event.exposure, event.netns, {name}, {cgroup}, {container})
        return self._admits(facts, self._restricted)

    def admits_listener(self, listener: Listener) -> bool:
        """Return True if the listener passes.

        Process filters apply to its opener and all its holders. A filter passes if at least one of these
        processes is included and none is excluded.
        """
        if not self._restricted:
            return True
        socket = listener.socket
        processes: Iterable[Process] = filter(None, (listener.opener, *listener.holders))
        rows = [(process.process, process.cgroup, process.container) for process in processes]
        names, cgroups, containers = map(set, zip(*rows, strict=True)) if rows else (set(), set(), set())
        facts = _Subject(socket.port, socket.proto, socket.exposure, socket.netns, names, cgroups, containers)
        return self._admits(facts, self._restricted)

    def admits_process(self, process: Process) -> bool:
        """Return True if the process passes the filters by process name, cgroup and container."""
        facts = _Subject(None, None, None, None, {process.process}, {process.cgroup}, {process.container})
        return self._admits(facts, [name for name in self._restricted if name in _PROCESS_FIELDS])

    def _admits(self, facts: _Subject, restricted: Iterable[str]) -> bool:
        for name in restricted:
            matches, condition = _MATCHES[name], getattr(self, name)
            if condition.include and not any(matches(value, facts) for value in condition.include):
                return False
            if any(matches(value, facts) for value in condition.exclude):
                return False
        return True


def _opener(event: Event) -> tuple[str | None, str | None, str | None]:
    """Return the name, cgroup and container of the process that opened the port."""
    opener = event.opener
    if opener is None:
        return (None, None, None) if event.kind == "close" else (event.process, event.cgroup, event.container)
    if opener.cgroup or opener.container:
        return opener.process, opener.cgroup, opener.container
    # The JSON form of an event has no cgroup for the opener. Use the cgroup of the process that caused the
    # event, which is usually the same.
    return opener.process, event.cgroup, event.container


_MATCHES: dict[str, Callable[[Any, _Subject], bool]] = {
    "port": lambda bounds, facts: facts.port is not None and bounds[0] <= facts.port <= bounds[1],
    "proto": lambda proto, facts: facts.proto == proto,
    "exposure": lambda exposure, facts: facts.exposure == exposure,
    "netns": lambda netns, facts: facts.netns == netns,
    "process": lambda pattern, facts: any(name and fnmatchcase(name, pattern) for name in facts.names),
    "cgroup": lambda ancestor, facts: any(is_in_cgroup(path, ancestor) for path in facts.cgroups),
    "container": lambda prefix, facts: any(is_in_container(id_, prefix) for id_ in facts.containers),
}
"""For each field, a function that returns True if a value of the field's filter matches."""
