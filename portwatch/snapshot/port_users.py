"""Find the processes that use a port after the kernel refused it to another socket."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from portwatch.model import Holder, Socket, Why
from portwatch.record import TCP_LISTEN, RawRecord, process_of, socket_of
from portwatch.snapshot import sock_diag
from portwatch.snapshot.owners import holders_by_inode

_TCP_CLOSE = 7
_BY_RELEVANCE: tuple[Why, ...] = ("listening", "bound", "connected")
_SOCK_DIAG_STATES: dict[Why, int] = {
    "listening": sock_diag.LISTEN,
    "bound": sock_diag.CLOSE | sock_diag.BOUND_INACTIVE,
    "connected": sock_diag.CONNECTED,
}
LISTS_BOUND_SINCE = (6, 8)
"""The first kernel whose sock_diag lists sockets that are bound but do not listen."""
UNKNOWN_HOLDER = (Holder(None, None, None, "unknown"),)


def port_users(refused: Socket, rows: Iterable[RawRecord]) -> tuple[Holder, ...]:
    """Return the processes among `rows` whose sockets block the address of `refused`.

    Only the holders with the most relevant `why` are returned. For example, if a process listens on the port,
    the connections that it has accepted there are left out.
    """
    holders: dict[Why, dict[Holder, None]] = {}
    for raw in rows:
        socket = socket_of(raw)
        if socket.inode == refused.inode or not socket.blocks(refused):
            continue
        process = process_of(raw)
        why = _why(socket.proto, raw.state)
        holders.setdefault(why, {})[Holder(process.pid, process.process, process.container, why)] = None
    for why in _BY_RELEVANCE:
        if why in holders:
            return tuple(holders[why])
    return _without_process(refused)


def listed_port_users(refused: Socket) -> tuple[Holder, ...]:
    """Return the same as `port_users`, but found with sock_diag and /proc instead of a BPF iterator.

    On kernels before LISTS_BOUND_SINCE, sockets that are bound but do not listen are not found.
    """
    for why, states in _SOCK_DIAG_STATES.items():
        inodes = {socket.inode for socket in sock_diag.blocking_sockets(refused, states) if socket.inode}
        holders = holders_by_inode(inodes - {refused.inode})
        processes = dict.fromkeys(chain.from_iterable(holders.values()))
        if processes:
            return tuple(Holder(holder.pid, holder.process, holder.container, why) for holder in processes)
    return _without_process(refused)


def _without_process(refused: Socket) -> tuple[Holder, ...]:
    if refused.proto == "tcp" and sock_diag.blocking_sockets(refused, sock_diag.TIME_WAIT):
        return (Holder(None, None, None, "time_wait"),)
    return UNKNOWN_HOLDER


def _why(proto: str, state: int) -> Why:
    if proto == "tcp" and state == TCP_LISTEN:
        return "listening"
    return "bound" if state == _TCP_CLOSE else "connected"
