"""Events and listeners as people read them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import cache, lru_cache

from portwatch.model import Event, Holder, Listener, Process, exposure
from portwatch.snapshot import netns

KINDS = {
    "open": ("open", "green"),
    "close": ("close", "red"),
    "bind_failed": ("bind failed", "yellow"),
    "listen_failed": ("listen failed", "yellow"),
    "gap": ("gap", "magenta"),
}
_KIND_WIDTH = 13
_ADDRESS_WIDTH = 28
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
            parts.append(f"{who(holder.process, holder.pid)} {verb[holder.why]}")
    return ", ".join(parts)


def event_line(event: Event, *, dated: bool = False) -> str:
    """One line of the tail, without its colours; with the day, where it need not be today."""
    seconds, fraction = divmod(event.time, 1_000_000_000)
    clock = time.strftime("%Y-%m-%d %H:%M:%S" if dated else "%H:%M:%S", time.localtime(seconds))
    moment = f"{clock}.{fraction // 1_000_000:03}"
    kind = "is open" if event.origin == "snapshot" and event.kind == "open" else KINDS[event.kind][0]
    return f"{moment}  {kind:<{_KIND_WIDTH}} {_what(event)}"


def _what(event: Event) -> str:
    if event.kind == "gap":
        lost = "some" if event.lost is None else event.lost
        return f"{lost} records were lost; what is open was looked up again"
    assert event.proto
    assert event.family
    assert event.address
    assert event.port is not None
    where = place(event.proto, event.family, event.address, event.port, event.device, event.v6only)
    parts = [who(event.process, event.pid)]
    if event.uid:
        parts.append(user_name(event.uid))
    if event.container:
        parts.append(f"container {event.container[:12]}")
    elif event.netns_name and event.netns != _own_netns():
        parts.append(f"namespace {printable(event.netns_name)}")
    if event.errno:
        parts.append(event.errno)
        if event.held_by:
            parts.append(held_by(event.held_by))
    elif event.kind == "open":
        parts.append(REACH[event.exposure or "all"])
    elif event.opener and event.opener.pid != event.pid:
        parts.append(f"opened by {who(event.opener.process, event.opener.pid)}")
    if event.sockets and (event.sockets > 1 or event.kind == "close"):
        parts.append(f"{event.sockets} socket{'s' * (event.sockets > 1)} on it")
    if event.origin == "reconcile":
        parts.append("found by a check")
    return f"{where:<{_ADDRESS_WIDTH}} {', '.join(parts)}"


def listener_table(listeners: list[Listener], width: int | None) -> list[str]:
    """A table, the widest column last; cut to `width` where that is known."""
    rows = [("PROTO", "ADDRESS", "REACHABLE FROM", "USER", "PROCESS")]
    for one in sorted(listeners, key=lambda one: (one.socket.port, one.socket.proto, one.socket.address)):
        socket = one.socket
        proto, _, where = place(
            socket.proto, socket.family, socket.address, socket.port, socket.device, socket.v6only
        ).partition(" ")
        owner = one.owner
        user = user_name(owner.uid) if owner and owner.uid is not None else "-"
        holders = _holders(one.holders)
        if socket.netns_name and socket.netns != _own_netns():
            holders += f" in namespace {printable(socket.netns_name)}"
        rows.append((proto, where, REACH[exposure(socket.address)], user, holders))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([*(cell.ljust(space) for cell, space in zip(row, widths, strict=False)), row[4]])
        for row in rows
    ]
    return [line[:width] if width else line for line in lines]


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
