"""What the metrics say of each port: which series there are, and how they are written."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from portwatch.model import Listener

EPHEMERAL = "ephemeral"
"""Stands for all ports that the kernel hands out."""

_UP = "portwatch_listening_port"
_OPENED = "portwatch_listening_port_opened_timestamp_seconds"


class Labels(NamedTuple):
    """What tells a series from the others; what is not known is empty."""

    proto: str
    address: str
    port: str
    process: str
    container: str
    pid: str | None
    """None where pids are not shown."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown of the ports."""

    pid: bool
    folded: range
    """Ports that are shown as one, since they come and go."""
    expected: Collection[tuple[str, int]]
    """These are shown by their numbers all the same."""
    most: int


def ephemeral_ports() -> range:
    """What the kernel hands out to those who name no port, here and now."""
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        first, last = map(int, file.read().split())
    return range(first, last + 1)


def series_of(listeners: Iterable[Listener], shown: Shown) -> tuple[dict[Labels, int | None], int]:
    """When the first port of each series opened, where that is known; and how many series were too many.

    Those that came first stay, so that they are the same at each scrape.
    """
    series: dict[Labels, int | None] = {}
    dropped: set[Labels] = set()
    with_pid, folded, expected = shown.pid, shown.folded, shown.expected
    for one in listeners:
        socket, opener = one.socket, one.opener
        is_folded = socket.port in folded and (socket.proto, socket.port) not in expected
        labels = Labels(
            socket.proto,
            socket.address,
            EPHEMERAL if is_folded else str(socket.port),
            opener.process if opener else "",
            (opener and opener.container) or "",
            (str(opener.pid) if opener else "") if with_pid else None,
        )
        if labels in series:
            times = [time for time in (series[labels], one.opened) if time is not None]
            series[labels] = min(times, default=None)
        elif len(series) < shown.most:
            series[labels] = one.opened
        else:
            dropped.add(labels)
    return series, len(dropped)


def exposition(series: Mapping[Labels, int | None]) -> str:
    """The two families of a port, as Prometheus and OpenMetrics both have them.

    By hand: of 10,000 ports prometheus-client makes samples in 20 ms and lines in 120 to 180 more, this does
    in 25 (bench/bench_scrape.py).
    """
    labels = [_braces(one) for one in series]
    lines = [
        f"# HELP {_UP} A port is open; process and container are those of who opened it.",
        f"# TYPE {_UP} gauge",
    ]
    lines += [f"{_UP}{text} 1.0" for text in labels]
    lines += [
        f"# HELP {_OPENED} When it was opened; not there where that is not known.",
        f"# TYPE {_OPENED} gauge",
    ]
    lines += [
        f"{_OPENED}{text} {opened / 1e9!r}"
        for text, opened in zip(labels, series.values(), strict=True)
        if opened is not None
    ]
    return "\n".join(lines) + "\n"


def _braces(labels: Labels) -> str:
    proto, address, port, process, container, pid = labels
    owner = f'process="{_escaped(process)}",container="{_escaped(container)}"'
    shown_pid = "" if pid is None else f',pid="{pid}"'
    return f'{{proto="{proto}",address="{address}",port="{port}",{owner}{shown_pid}}}'


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
