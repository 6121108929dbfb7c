"""Who uses a port that somebody else was refused."""

from __future__ import annotations

from collections.abc import Iterable

from portwatch.model import Holder, Socket, Why
from portwatch.record import TCP_LISTEN, RawRecord, process_of, socket_of
from portwatch.snapshot import sock_diag
from portwatch.snapshot.owners import holders_of

_TCP_CLOSE = 7
_MOST_TELLING_FIRST: tuple[Why, ...] = ("listening", "bound", "connected")
_STATES: dict[Why, int] = {
    "listening": sock_diag.LISTEN,
    "bound": sock_diag.CLOSE | sock_diag.BOUND_INACTIVE,
    "connected": sock_diag.CONNECTED,
}
LISTS_BOUND_SINCE = (6, 8)
"""The kernel from which on sock_diag tells of sockets that are bound and no more."""
UNKNOWN_HOLDER = (Holder(None, None, None, "unknown"),)


def port_users(refused: Socket, rows: Iterable[RawRecord]) -> tuple[Holder, ...]:
    """The processes whose sockets are in the way of `refused`, of those in `rows`.

    A listener's accepted connections are on its port too: of the ways to hold a port
    only the most telling one is given.
    """
    found: dict[Why, dict[Holder, None]] = {}
    for raw in rows:
        socket = socket_of(raw)
        if socket.inode == refused.inode or not socket.blocks(refused):
            continue
        process = process_of(raw)
        why = _why(socket.proto, raw.state)
        found.setdefault(why, {})[Holder(process.pid, process.process, process.container, why)] = None
    for why in _MOST_TELLING_FIRST:
        if why in found:
            return tuple(found[why])
    return _nobody(refused)


def listed_port_users(refused: Socket) -> tuple[Holder, ...]:
    """The same where sock_diag alone tells, which does not know of all (LISTS_BOUND_SINCE)."""
    for why, states in _STATES.items():
        inodes = {socket.inode for socket in sock_diag.blockers_of(refused, states) if socket.inode}
        holders = holders_of(inodes - {refused.inode})
        found = {one: None for processes in holders.values() for one in processes}
        if found:
            return tuple(Holder(one.pid, one.process, one.container, why) for one in found)
    return _nobody(refused)


def _nobody(refused: Socket) -> tuple[Holder, ...]:
    if refused.proto == "tcp" and sock_diag.blockers_of(refused, sock_diag.TIME_WAIT):
        return (Holder(None, None, None, "time_wait"),)
    return UNKNOWN_HOLDER


def _why(proto: str, state: int) -> Why:
    if proto == "tcp" and state == TCP_LISTEN:
        return "listening"
    return "bound" if state == _TCP_CLOSE else "connected"
