"""Whom it concerns: which ports, which processes and which containers somebody wants to hear of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from portwatch.homes import Homes, is_in_cgroup, is_in_container
from portwatch.model import Event, Exposure, Listener, Process
from portwatch.only import Only
from portwatch.width import ALL_PORTS, PROTOS, Width, bits

_OF_PROCESSES = ("process", "cgroup", "container")

PortRange = tuple[int, int]


class _Facts(NamedTuple):
    """What is known of an event or a listener: of who opened it, and of those who hold it."""

    port: int | None
    proto: str | None
    exposure: Exposure | None
    netns: int | None
    names: set[str | None]
    cgroups: set[str | None]
    containers: set[str | None]


@dataclass(frozen=True, slots=True)
class Scope:
    """Different fields narrow; several values of one field widen.

    A close is wanted if its open was: whoever closes it, it is judged by who opened it.
    What is not known of an event is neither what somebody wants nor what they do not want.
    """

    port: Only[PortRange] = Only()
    proto: Only[str] = Only()
    exposure: Only[Exposure] = Only()
    process: Only[str] = Only()
    """Patterns as in a shell: `nginx*`."""
    cgroup: Only[str] = Only()
    """Paths from the root on, such as `/system.slice`: that cgroup and everything below it."""
    container: Only[str] = Only()
    """Ids, or how they begin."""
    netns: Only[int] = Only()
    """Inodes, as `/proc/PID/ns/net` has them."""
    _narrowing: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """The fields that say something: every event is asked about these, and often there are none."""

    def __post_init__(self) -> None:
        narrowing = tuple(name for name in _MATCHES if getattr(self, name) != Only())
        object.__setattr__(self, "_narrowing", narrowing)

    @property
    def width(self) -> Width:
        """What of it can be told without asking who it was, but where they live."""
        ports = bits(self.port.wanted) if self.port.wanted else ALL_PORTS
        protos = frozenset(self.proto.wanted) or PROTOS
        homes = Homes(self.cgroup, self.container)
        inodes, unwanted = frozenset(self.netns.wanted), frozenset(self.netns.unwanted)
        return Width(
            ports=ports & ~bits(self.port.unwanted) if self.port != Only() else None,
            protos=protos.difference(self.proto.unwanted) if self.proto != Only() else None,
            namespaces=inodes - unwanted if inodes else None,
            without=frozenset() if inodes else unwanted,
            homes=frozenset([homes]) if homes != Homes() else None,
        )

    def admits(self, event: Event) -> bool:
        """Whether an event is wanted. A gap concerns everybody."""
        if not self._narrowing or event.kind == "gap":
            return True
        name, cgroup, container = _opener(event)
        return self._admits(
            _Facts(event.port, event.proto, event.exposure, event.netns, {name}, {cgroup}, {container}),
            self._narrowing,
        )

    def admits_listener(self, listener: Listener) -> bool:
        """Whether a listener is wanted."""
        if not self._narrowing:
            return True
        socket = listener.socket
        processes: Iterable[Process] = filter(None, (listener.opener, *listener.holders))
        known = [(one.process, one.cgroup, one.container) for one in processes]
        names, cgroups, containers = map(set, zip(*known, strict=True)) if known else (set(), set(), set())
        return self._admits(
            _Facts(
                socket.port,
                socket.proto,
                socket.exposure,
                socket.netns,
                names,
                cgroups,
                containers,
            ),
            self._narrowing,
        )

    def admits_process(self, process: Process) -> bool:
        """Whether a process is wanted itself, by its name and by where it lives."""
        facts = _Facts(None, None, None, None, {process.process}, {process.cgroup}, {process.container})
        return self._admits(facts, [name for name in self._narrowing if name in _OF_PROCESSES])

    def _admits(self, facts: _Facts, narrowing: Iterable[str]) -> bool:
        for name in narrowing:
            matches, only = _MATCHES[name], getattr(self, name)
            if only.wanted and not any(matches(one, facts) for one in only.wanted):
                return False
            if any(matches(one, facts) for one in only.unwanted):
                return False
        return True


def _opener(event: Event) -> tuple[str | None, str | None, str | None]:
    """Its name, cgroup and container."""
    opener = event.opener
    if opener is None:
        return (None, None, None) if event.kind == "close" else (event.process, event.cgroup, event.container)
    if opener.cgroup or opener.container:
        return opener.process, opener.cgroup, opener.container
    # What was read from JSON does not tell where its opener was; mostly that is where the rest happened.
    return opener.process, event.cgroup, event.container


_MATCHES: dict[str, Callable[[Any, _Facts], bool]] = {
    "port": lambda bounds, facts: facts.port is not None and bounds[0] <= facts.port <= bounds[1],
    "proto": lambda wanted, facts: facts.proto == wanted,
    "exposure": lambda wanted, facts: facts.exposure == wanted,
    "netns": lambda wanted, facts: facts.netns == wanted,
    "process": lambda pattern, facts: any(name and fnmatchcase(name, pattern) for name in facts.names),
    "cgroup": lambda wanted, facts: any(is_in_cgroup(path, wanted) for path in facts.cgroups),
    "container": lambda prefix, facts: any(is_in_container(one, prefix) for one in facts.containers),
}
"""When a value of a field fits."""
