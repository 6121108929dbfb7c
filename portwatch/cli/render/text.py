"""Events and listeners as people read them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import cache, lru_cache
from itertools import repeat

from portwatch.event import Event, Listener
from portwatch.linux import netns
from portwatch.model import Holder, Process

KINDS = {
    "open": ("open", "green"),
    "close": ("close", "red"),
    "bind_failed": ("bind failed", "yellow"),
    "listen_failed": ("listen failed", "yellow"),
    "gap": ("gap", "magenta"),
}
_KIND_WIDTH = 13
_ADDRESS_WIDTH = 28
_WIDE, _NARROW_ADDRESS_WIDTH = 100, 19
"""Below so many columns, a line has no milliseconds and little room between."""
_DISPENSABLE = ("reach", "check", "sockets", "user", "errno", "opener", "namespace", "container")
"""What a line that is too long for the terminal goes without, the first first."""
_ROOM_FOR_PROCESS = 40
REACH = {"all": "every address", "public": "public", "private": "private network", "loopback": "loopback"}
NO_HOLDER = "no process (the kernel's own, on its way, or not ours to see)"


def printable(text: str) -> str:
    """A name that no terminal takes for a command: what is not printable is shown escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def place(proto: str, family: str, address: str, port: int, device: str | None, v6only: bool | None) -> str:
    """Where it listens: `tcp 127.0.0.1:8080`, `tcp [::]:80 (v4 too)`."""
    host = f"[{address}]" if family == "ipv6" else address
    scope = f"%{printable(device)}" if device else ""
    both = " (v4 too)" if family == "ipv6" and address == "::" and v6only is False else ""
    return f"{proto} {host}{scope}:{port}{both}"


@lru_cache(maxsize=256)
def user_name(uid: int) -> str:
    """The name of a user, or the number where there is none."""
    from pwd import getpwuid  # the C library may open a network's directory for it

    try:
        return getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@cache
def _own_netns() -> int:
    return netns.own().inode


def foreign_netns(one: Event | Listener) -> str | None:
    """What its network namespace is called, if it is not our own: a port is another one there."""
    if one.netns in (None, _own_netns()):
        return None
    return printable(one.netns_name or f"net:[{one.netns}]")


def who(process: str | None, pid: int | None) -> str:
    """A process: `nginx (4242)`."""
    if pid is None:
        return "unknown process"
    return f"{printable(process or '?')} ({pid})"


def held_by(holders: Iterable[Holder]) -> str:
    """The answer to "already in use: by whom?"."""
    parts = []
    for holder in holders:
        if holder.why == "time_wait":
            parts.append("a closed connection keeps it for a minute (TIME_WAIT)")
        elif holder.why == "unknown":
            parts.append("by whom could not be found")
        else:
            verb = {"listening": "is listening", "bound": "has bound it", "connected": "is connected from it"}
            where = f" in container {holder.container[:12]}" if holder.container else ""
            parts.append(f"{who(holder.process, holder.pid)}{where} {verb[holder.why]}")
    return ", ".join(parts)


def event_line(event: Event, *, dated: bool = False, width: int | None = None) -> str:
    """One line of the tail, without its colours; with the day, where it need not be today.

    Where `width` is known it is shortened to that: what matters least goes first.
    """
    is_narrow = width is not None and width < _WIDE
    seconds, fraction = divmod(event.time, 1_000_000_000)
    clock = time.strftime("%Y-%m-%d %H:%M:%S" if dated else "%H:%M:%S", time.localtime(seconds))
    moment = clock if is_narrow else f"{clock}.{fraction // 1_000_000:03} "
    kind = "is open" if event.origin == "snapshot" and event.kind == "open" else KINDS[event.kind][0]
    head = f"{moment} {kind:<{_KIND_WIDTH}} "
    if event.kind == "gap":
        lost = "some" if event.lost is None else event.lost
        return f"{head}{lost} records were lost; what is open was looked up again"[:width]
    head += f"{_where(event):<{_NARROW_ADDRESS_WIDTH if is_narrow else _ADDRESS_WIDTH}} "
    parts = _parts(event)
    for name in _DISPENSABLE:
        if width is None or len(head) + len(", ".join(parts.values())) <= width:
            break
        parts.pop(name, None)
    return (head + ", ".join(parts.values()))[:width]


def _where(event: Event) -> str:
    assert event.proto
    assert event.family
    assert event.address
    assert event.port is not None
    return place(event.proto, event.family, event.address, event.port, event.device, event.v6only)


def _parts(event: Event) -> dict[str, str]:
    """What a line tells behind the place, by names of which _DISPENSABLE tells."""
    parts = {"who": who(event.process, event.pid)}
    if event.uid:
        parts["user"] = user_name(event.uid)
    if event.container:
        parts["container"] = f"container {event.container[:12]}"
    elif netns_name := foreign_netns(event):
        parts["namespace"] = f"namespace {netns_name}"
    if event.errno:
        parts["errno" if event.held_by else "all that is known of why"] = event.errno
        if event.held_by:
            parts["held by"] = held_by(event.held_by)
    elif event.kind == "open":
        parts["reach"] = REACH[event.exposure or "all"]
    elif event.opener and event.opener.pid != event.pid:
        parts["opener"] = f"opened by {who(event.opener.process, event.opener.pid)}"
    if event.sockets and (event.sockets > 1 or event.kind == "close"):
        parts["sockets"] = f"{event.sockets} socket{'s' * (event.sockets > 1)} on it"
    if event.origin == "reconcile":
        parts["check"] = "found by a check"
    return parts


def listener_table(listeners: list[Listener], width: int | None) -> list[str]:
    """A table, the widest column last; in a `width` that leaves it no room, without what matters least."""
    rows = [("PROTO", "ADDRESS", "REACHABLE FROM", "USER", "PROCESS")]
    for one in sorted(listeners, key=lambda one: (one.port, one.proto, one.address)):
        proto, _, where = place(one.proto, one.family, one.address, one.port, one.device, one.v6only).partition(
            " "
        )
        user = "-" if one.uid is None else user_name(one.uid)
        holders = _holders(one.holders)
        if netns_name := foreign_netns(one):
            holders += f" in namespace {netns_name}"
        rows.append((proto, where, REACH[one.exposure], user, holders))
    columns = list(zip(*rows, strict=True))
    for name in ("REACHABLE FROM", "USER"):
        *fixed, last = (max(map(len, column)) for column in columns)
        if width and sum(fixed) + 2 * len(fixed) + min(last, _ROOM_FOR_PROCESS) > width:
            columns = [column for column in columns if column[0] != name]
    *before, processes = columns
    padded = [map(str.ljust, column, repeat(max(map(len, column)))) for column in before]
    return ["  ".join(row)[:width] for row in zip(*padded, processes, strict=True)]


def _holders(holders: tuple[Process, ...]) -> str:
    if not holders:
        return NO_HOLDER
    by_name: dict[tuple[str, str | None], list[int]] = {}
    for holder in holders:
        by_name.setdefault((printable(holder.process), holder.container), []).append(holder.pid)
    return "; ".join(
        f"{name} ({', '.join(map(str, sorted(pids)))})"
        + (f" in container {container[:12]}" if container else "")
        for (name, container), pids in by_name.items()
    )
