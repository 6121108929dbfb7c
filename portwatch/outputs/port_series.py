"""What the metrics say of each port: which series there are, and how they are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from portwatch.event import Listener
from portwatch.model import Process, Socket

EPHEMERAL = "ephemeral"
"""Stands for all ports that the kernel hands out."""

_UP = "portwatch_listening_port"
_OPENED = "portwatch_listening_port_opened_timestamp_seconds"


@dataclass(frozen=True, slots=True)
class SeriesOptions:
    """What is shown of the ports."""

    pid: bool
    folded: range
    """Ports that are shown as one, since they come and go."""
    expected: Collection[tuple[str, int]]
    """These are shown by their numbers all the same."""
    most: int


@dataclass(slots=True)
class PortSeries:
    """What there is to say of them."""

    series: dict[str, int | None] = field(default_factory=dict)
    """By their labels as they are written, when the first port of each opened, where that is known."""
    left_out: set[str] = field(default_factory=set)
    """The labels of series that were too many."""
    sockets: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By protocol and address."""
    expected_up: set[tuple[str, int]] = field(default_factory=set)


def ephemeral_ports() -> range:
    """What the kernel hands out to those who name no port, here and now."""
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        first, last = map(int, file.read().split())
    return range(first, last + 1)


def gather(listeners: Iterable[Listener], shown: SeriesOptions) -> PortSeries:
    """Looks at each listener once, and keeps none.

    Thousands of objects that live as long as a scrape have Python look through all that there are for
    garbage, which keeps every thread waiting for 20 to 30 ms when 10,000 ports are open.
    """
    ports = PortSeries()
    series, expected = ports.series, frozenset(shown.expected)
    for one in listeners:
        socket = one.socket
        ports.sockets[socket.proto, socket.address] += 1
        is_expected = (socket.proto, socket.port) in expected
        if is_expected:
            ports.expected_up.add((socket.proto, socket.port))
        is_folded = socket.port in shown.folded and not is_expected
        labels = _labels(socket, EPHEMERAL if is_folded else str(socket.port), one.opener, shown.pid)
        if labels in series:
            times = [time for time in (series[labels], one.opened) if time is not None]
            series[labels] = min(times, default=None)
        elif len(series) < shown.most:  # the first stay: the same ones at each scrape
            series[labels] = one.opened
        else:
            ports.left_out.add(labels)
    return ports


def exposition(series: Mapping[str, int | None]) -> str:
    """The two families of a port, as Prometheus and OpenMetrics both have them.

    By hand: of 10,000 ports prometheus-client makes samples in 20 ms and their lines in 100 to 160 more. Here
    labels and lines take 15.
    """
    lines = [
        f"# HELP {_UP} A port is open; process and container are those of who opened it.",
        f"# TYPE {_UP} gauge",
        *(f"{_UP}{labels} 1.0" for labels in series),
        f"# HELP {_OPENED} When it was opened; not there where that is not known.",
        f"# TYPE {_OPENED} gauge",
        *(f"{_OPENED}{labels} {time / 1e9}" for labels, time in series.items() if time is not None),
    ]
    return "\n".join(lines) + "\n"


def _labels(socket: Socket, port: str, opener: Process | None, with_pid: bool) -> str:
    """What is not known is empty."""
    process, container, pid = "", "", ""
    if opener:
        process, container, pid = opener.process, opener.container or "", str(opener.pid)
    return (
        f'{{proto="{socket.proto}",address="{socket.address}",port="{port}",'
        f'process="{_escaped(process)}",container="{_escaped(container)}"'
        + (f',pid="{pid}"}}' if with_pid else "}")
    )


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
