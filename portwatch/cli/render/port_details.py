"""One port as people read it: at length for who, in short for kill."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from portwatch.cli.render.text import NO_HOLDER, REACH, foreign_netns, held_by, place, printable, user_name, who
from portwatch.event import Listener
from portwatch.linux.ancestry import ProcessDetails, details_of
from portwatch.model import Process
from portwatch.port.forwarders import Forwarder, forwarder_of
from portwatch.port.lookup import LookupResult, Port

_LABEL = 12


def lines(result: LookupResult) -> Iterator[str]:
    """All that is known of every listener."""
    for number, one in enumerate(result.listeners):
        if number:
            yield ""
        yield heading(one)
        yield _row("open since", _since(one))
        if one.opener:
            yield _row("opened by", _opener(one))
        if netns_name := foreign_netns(one):
            yield _row("namespace", f"{netns_name}, which is not our own")
        if not one.holders:
            yield _row("held by", NO_HOLDER)
        for holder in one.holders:
            yield from _holder(holder, result)


def heading(listener: Listener) -> str:
    """Where somebody listens, and how far that can be reached from."""
    one = listener.socket
    where = place(one.proto, one.family, one.address, one.port, one.device, one.v6only)
    return f"{where}, {REACH[one.exposure]}{', mptcp' if one.mptcp else ''}"


def short_lines(result: LookupResult) -> Iterator[str]:
    """Every listener, and below it who holds it."""
    for one in result.listeners:
        yield heading(one)
        for holder in one.holders:
            known = details_of(holder)
            where = [f"container {holder.container[:12]}"] if holder.container else []
            command = f": {_shown(known.command)}" if known.command else ""
            yield f"  {', '.join([who(holder.process, holder.pid), *_whose(holder), *where])}{command}"
            if forwarding := forwarder_of(holder, known.command, result.all_listeners):
                yield f"    {forwarding_line(forwarding)}"
        if not one.holders:
            yield f"  {NO_HOLDER}"


def forwarding_line(forwarding: Forwarder) -> str:
    """Where a forwarder leads, and what to do instead of ending it."""
    parts = ["only forwards" + (f" to {printable(forwarding.target)}" if forwarding.target else "")]
    if forwarding.container:
        parts.append(f"container {forwarding.container[:12]}")
    if forwarding.listeners:
        behind = ", ".join(who(one.process, one.pid) for one in forwarding.listeners)
        parts.append(f"where {behind} listens")
    return f"{', '.join(parts)}; {forwarding.advice}"


def nobody(port: Port, result: LookupResult) -> str:
    """The answer where nobody listens, with who has the port in another way, or elsewhere."""
    parts = [f"nobody listens on {port}"]
    if result.blockers:
        parts.append(held_by(result.blockers))
    if any(one.socket.port == port.number and one.socket.proto in port.protos for one in result.all_listeners):
        parts.append("outside of what was asked for somebody does (--netns all, or fewer options)")
    return "; ".join(parts)


def _holder(holder: Process, result: LookupResult) -> Iterator[str]:
    known = details_of(holder)
    since = [f"since {_moment(holder.start_time)}"] if holder.start_time else []
    yield _row("held by", ", ".join([who(holder.process, holder.pid), *_whose(holder), *since]))
    forwarding = forwarder_of(holder, known.command, result.all_listeners)
    if forwarding:
        yield _row("", forwarding_line(forwarding))
    for label, text in _facts(holder, known):
        yield _row(f"  {label}", text)


def _facts(holder: Process, known: ProcessDetails) -> Iterable[tuple[str, str]]:
    facts = {
        "command": known.command and _shown(known.command),
        "ancestry": " > ".join(f"{printable(one.process)}({one.pid})" for one in known.ancestry),
        "cgroup": holder.cgroup and printable(holder.cgroup),
        "container": holder.container and printable(holder.container),
        "pod": holder.pod and printable(holder.pod),
    }
    return [(label, text) for label, text in facts.items() if text]


def _since(listener: Listener) -> str:
    if listener.opened:
        return _moment(listener.opened)
    owner = listener.owner
    started = (
        f" ({who(owner.process, owner.pid)} runs since {_moment(owner.start_time)})"
        if owner and owner.start_time
        else ""
    )
    return f"before portwatch looked{started}"


def _opener(listener: Listener) -> str:
    assert listener.opener
    named = who(listener.opener.process, listener.opener.pid)
    return named if listener.opened else f"{named} presumably, its oldest holder"


def _whose(process: Process) -> list[str]:
    return [] if process.uid is None else [user_name(process.uid)]


def _moment(nanoseconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(nanoseconds // 1_000_000_000))


def _shown(command: tuple[str, ...]) -> str:
    return printable(" ".join(command))


def _row(label: str, text: str) -> str:
    return f"  {label:<{_LABEL}}{text}"
