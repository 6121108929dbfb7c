"""Format one port as text: every detail for `who`, a summary for `kill`."""

from __future__ import annotations

import time
from collections.abc import Iterator

from portwatch.cli.render.text import (
    EXPOSURE_LABELS,
    NO_HOLDER,
    foreign_netns,
    format_address,
    format_holders,
    format_process,
    format_processes,
    printable,
    user_name,
)
from portwatch.event import Listener
from portwatch.linux.ancestry import ProcessDetails, details_of
from portwatch.model import Process
from portwatch.port.forwarders import Forwarder, forwarder_of
from portwatch.port.lookup import LookupResult, Port

_LABEL_WIDTH = 12


def detail_lines(result: LookupResult) -> Iterator[str]:
    """Yield the lines that say everything known about each listener, with a blank line between listeners."""
    for number, listener in enumerate(result.listeners):
        if number:
            yield ""
        yield heading(listener)
        yield _row("open since", _open_since(listener))
        if listener.opener:
            yield _row("opened by", _opened_by(listener))
        if netns_name := foreign_netns(listener):
            yield _row("namespace", f"{netns_name}, not the one portwatch runs in")
        if not listener.holders:
            yield _row("held by", NO_HOLDER)
        for holder in listener.holders:
            yield from _holder_rows(holder, result)


def summary_lines(result: LookupResult) -> Iterator[str]:
    """Yield one line for each listener. The lines of its holders follow it."""
    for listener in result.listeners:
        yield heading(listener)
        for holder in listener.holders:
            details = details_of(holder)
            container = [f"container {holder.container[:12]}"] if holder.container else []
            command = f": {_command_line(details.command)}" if details.command else ""
            yield f"  {', '.join([*_name_and_user(holder), *container])}{command}"
            if forwarder := forwarder_of(holder, details.command, result.all_listeners):
                yield f"    {_forwarder_line(forwarder)}"
        if not listener.holders:
            yield f"  {NO_HOLDER}"


def heading(listener: Listener) -> str:
    """Return the address of a listener and its exposure: `tcp 127.0.0.1:8080, loopback`."""
    mptcp = ", mptcp" if listener.mptcp else ""
    return f"{format_address(listener)}, {EXPOSURE_LABELS[listener.exposure]}{mptcp}"


def no_listener_message(port: Port, result: LookupResult) -> str:
    """Return the message that nothing listens on a port. It also names other users of the port, if any."""
    message = f"nothing listens on {port}"
    if any(one.port == port.number and one.proto in port.protos for one in result.all_listeners):
        message += (
            " in the selected scope, but a socket outside the scope does (try --netns all, or fewer options)"
        )
    return "; ".join([message, format_holders(result.blockers)] if result.blockers else [message])


def _holder_rows(holder: Process, result: LookupResult) -> Iterator[str]:
    details = details_of(holder)
    since = [f"since {_local_time(holder.start_time)}"] if holder.start_time else []
    yield _row("held by", ", ".join([*_name_and_user(holder), *since]))
    if forwarder := forwarder_of(holder, details.command, result.all_listeners):
        yield _row("", _forwarder_line(forwarder))
    for label, text in _holder_facts(holder, details).items():
        if text:
            yield _row(f"  {label}", text)


def _holder_facts(holder: Process, details: ProcessDetails) -> dict[str, str | None]:
    return {
        "command": _command_line(details.command or ()),
        "ancestry": " > ".join(f"{printable(one.process)}({one.pid})" for one in details.ancestry),
        "cgroup": holder.cgroup and printable(holder.cgroup),
        "container": holder.container and printable(holder.container),
        "pod": holder.pod and printable(holder.pod),
    }


def _forwarder_line(forwarder: Forwarder) -> str:
    """Return the target of a forwarder, and what to do instead of killing the forwarder."""
    parts = ["only forwards" + (f" to {printable(forwarder.target)}" if forwarder.target else "")]
    if forwarder.container:
        parts.append(f"container {forwarder.container[:12]}")
    if forwarder.listeners:
        parts.append(f"where {format_processes(forwarder.listeners)} listens")
    return f"{', '.join(parts)}; {forwarder.advice}"


def _open_since(listener: Listener) -> str:
    if listener.opened:
        return _local_time(listener.opened)
    owner = listener.owner
    if not (owner and owner.start_time):
        return "before portwatch started"
    return f"before portwatch started ({format_process(owner)} runs since {_local_time(owner.start_time)})"


def _opened_by(listener: Listener) -> str:
    assert listener.opener
    opener = format_process(listener.opener)
    return opener if listener.opened else f"probably {opener}, the oldest holder"


def _name_and_user(process: Process) -> list[str]:
    return [format_process(process), *([] if process.uid is None else [user_name(process.uid)])]


def _local_time(nanoseconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(nanoseconds // 1_000_000_000))


def _command_line(command: tuple[str, ...]) -> str:
    return printable(" ".join(command))


def _row(label: str, text: str) -> str:
    return f"  {label:<{_LABEL_WIDTH}}{text}"
