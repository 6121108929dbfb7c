"""Format events and listeners as text without colors: the lines of `tail`, the table of `list`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import cache, lru_cache
from itertools import repeat
from pwd import getpwuid

from portwatch.event import Event, Listener
from portwatch.linux import netns
from portwatch.model import Holder, Process

KIND_LABELS = {
    "open": "open",
    "close": "close",
    "bind_failed": "bind failed",
    "listen_failed": "listen failed",
    "gap": "gap",
}
EXPOSURE_LABELS = {
    "all": "all addresses",
    "public": "public address",
    "private": "private network",
    "loopback": "loopback",
}
NO_HOLDER = "no process (kernel socket, descriptor in transit, or no permission to see it)"

_KIND_WIDTH = 13
_ADDRESS_WIDTH = 28
_NARROW_ADDRESS_WIDTH = 19
_PROCESS_WIDTH = 40
"""The table drops other columns until this many characters of the process column fit."""
_WIDE = 100
"""On a terminal with fewer columns, a line has no milliseconds and a narrow address column."""
_DROP_ORDER = ("exposure", "reconcile", "sockets", "user", "errno", "opener", "namespace", "container")
"""A line drops these parts, in this order, until it fits the terminal."""
_HOLDER_ACTIONS = {
    "listening": "is listening",
    "bound": "is bound to it",
    "connected": "uses it for a connection",
}


def printable(text: str) -> str:
    """Return the text with unprintable characters escaped, so that it cannot control a terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


@lru_cache(maxsize=256)
def user_name(uid: int) -> str:
    """Return the name of a user, or the number if the user has no name."""
    try:
        return getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def foreign_netns(source: Event | Listener) -> str | None:
    """Return the name of a network namespace, or None if it is our own or unknown."""
    if source.netns in (None, _own_netns()):
        return None
    return printable(source.netns_name or f"net:[{source.netns}]")


@cache
def _own_netns() -> int:
    return netns.own().inode


def format_address(source: Event | Listener) -> str:
    """Return the protocol, address and port: `tcp 127.0.0.1:8080`, `tcp [::]:80 (v4 too)`."""
    assert source.address
    host = f"[{source.address}]" if source.family == "ipv6" else source.address
    device = f"%{printable(source.device)}" if source.device else ""
    dual_stack = " (v4 too)" if source.address == "::" and source.v6only is False else ""
    return f"{source.proto} {host}{device}:{source.port}{dual_stack}"


def format_process(process: Process | Holder | Event) -> str:
    """Return the name and pid of a process: `nginx (4242)`."""
    if process.pid is None:
        return "unknown process"
    return f"{printable(process.process or '?')} ({process.pid})"


def format_processes(processes: Iterable[Process]) -> str:
    """Return the names and pids of processes: `nginx (4242), nginx (4243)`."""
    return ", ".join(map(format_process, processes))


def format_holders(holders: Iterable[Holder]) -> str:
    """Return a description of the processes that keep other processes from binding a port."""
    return ", ".join(map(_format_holder, holders))


def _format_holder(holder: Holder) -> str:
    if holder.why == "time_wait":
        return "a closed connection holds it for up to a minute (TIME_WAIT)"
    if holder.why == "unknown":
        return "its holder was not found"
    return f"{format_process(holder)}{_in_container(holder.container)} {_HOLDER_ACTIONS[holder.why]}"


def _in_container(container: str | None) -> str:
    return f" in container {container[:12]}" if container else ""


def event_line(event: Event, *, dated: bool = False, width: int | None = None) -> str:
    """Return an event as one line. With `dated`, the time includes the date.

    If the line is longer than `width`, it drops its least important parts. If it is still longer, it is cut.
    """
    is_narrow = width is not None and width < _WIDE
    seconds, fraction = divmod(event.time, 1_000_000_000)
    clock = time.strftime("%Y-%m-%d %H:%M:%S" if dated else "%H:%M:%S", time.localtime(seconds))
    timestamp = clock if is_narrow else f"{clock}.{fraction // 1_000_000:03} "
    kind = "is open" if event.origin == "snapshot" and event.kind == "open" else KIND_LABELS[event.kind]
    head = f"{timestamp} {kind:<{_KIND_WIDTH}} "
    if event.kind == "gap":
        lost = "some" if event.lost is None else event.lost
        return f"{head}{lost} records were lost; open ports were checked again"[:width]
    head += f"{format_address(event):<{_NARROW_ADDRESS_WIDTH if is_narrow else _ADDRESS_WIDTH}} "
    parts = _event_parts(event)
    for name in _DROP_ORDER:
        if width is None or len(head) + len(", ".join(parts.values())) <= width:
            break
        parts.pop(name, None)
    return (head + ", ".join(parts.values()))[:width]


def _event_parts(event: Event) -> dict[str, str]:
    """Return the parts of a line after the address, by name. A line can drop those named in `_DROP_ORDER`."""
    parts = {"process": format_process(event)}
    if event.uid:
        parts["user"] = user_name(event.uid)
    if event.container:
        parts["container"] = f"container {event.container[:12]}"
    elif netns_name := foreign_netns(event):
        parts["namespace"] = f"namespace {netns_name}"
    if event.errno and event.held_by:
        parts["errno"] = event.errno
        parts["holders"] = format_holders(event.held_by)
    elif event.errno:
        parts["only reason"] = event.errno  # not in _DROP_ORDER, so it is never dropped
    elif event.kind == "open":
        parts["exposure"] = EXPOSURE_LABELS[event.exposure or "all"]
    elif event.opener and event.opener.pid != event.pid:
        parts["opener"] = f"opened by {format_process(event.opener)}"
    if event.sockets and (event.sockets > 1 or event.kind == "close"):
        still = "still " if event.kind == "close" else ""
        parts["sockets"] = f"{event.sockets} socket{'s' * (event.sockets > 1)} {still}open"
    if event.origin == "reconcile":
        parts["reconcile"] = "found by a later check"
    return parts


def listener_table(listeners: list[Listener], width: int | None) -> list[str]:
    """Return the lines of a table. Columns are dropped if the processes would not fit `width` otherwise."""
    head = ("PROTO", "ADDRESS", "REACHABLE FROM", "USER", "PROCESS")
    rows = [head, *map(_table_row, sorted(listeners, key=_sort_key))]
    columns = list(zip(*rows, strict=True))
    for name in ("REACHABLE FROM", "USER"):
        *fixed, last = (max(map(len, column)) for column in columns)
        if width and sum(fixed) + 2 * len(fixed) + min(last, _PROCESS_WIDTH) > width:
            columns = [column for column in columns if column[0] != name]
    *before, processes = columns
    padded = [map(str.ljust, column, repeat(max(map(len, column)))) for column in before]
    return ["  ".join(row)[:width] for row in zip(*padded, processes, strict=True)]


def _sort_key(listener: Listener) -> tuple[int, str, str]:
    return listener.port, listener.proto, listener.address


def _table_row(listener: Listener) -> tuple[str, str, str, str, str]:
    proto, _, address = format_address(listener).partition(" ")
    user = "-" if listener.uid is None else user_name(listener.uid)
    processes = _grouped_by_name(listener.holders)
    if netns_name := foreign_netns(listener):
        processes += f" in namespace {netns_name}"
    return proto, address, EXPOSURE_LABELS[listener.exposure], user, processes


def _grouped_by_name(holders: tuple[Process, ...]) -> str:
    """Return the holders, with all pids of one name together: `nginx (4242, 4243); sshd (7)`."""
    if not holders:
        return NO_HOLDER
    groups: dict[tuple[str, str | None], list[int]] = {}
    for holder in holders:
        groups.setdefault((printable(holder.process), holder.container), []).append(holder.pid)
    return "; ".join(
        f"{name} ({', '.join(map(str, sorted(pids)))}){_in_container(container)}"
        for (name, container), pids in groups.items()
    )
