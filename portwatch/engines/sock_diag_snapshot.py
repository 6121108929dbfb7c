"""Snapshots without BPF. sock_diag lists the sockets, and /proc shows which processes hold the sockets."""

from __future__ import annotations

from portwatch.engines import limits
from portwatch.engines.members import Members
from portwatch.errors import EngineUnavailable
from portwatch.linux import capabilities, netns
from portwatch.linux.lineage import Lineage
from portwatch.model import OpenSocket, Snapshot, Socket
from portwatch.snapshot import sock_diag
from portwatch.snapshot.owners import holders_by_inode

LIMITS = (limits.EPHEMERAL_UDP, limits.EMPTY_NAMESPACES)
"""The limits that apply even with all capabilities."""


def take_snapshot(membership: Members | Lineage) -> Snapshot:
    """Return all open sockets, with holders and trees, of each network namespace that we may enter."""
    sockets = with_holders(all_open_sockets(), membership)
    return Snapshot(tuple(sockets), {one.socket.inode for one in sockets})


def all_open_sockets() -> list[Socket]:
    """Return all open sockets, without holders, of each network namespace that we may enter.

    Raise EngineUnavailable if sock_diag does not answer.
    """
    own = netns.own()
    namespaces = (
        netns.all_namespaces() if capabilities.has(capabilities.SYS_ADMIN, capabilities.effective()) else [own]
    )
    sockets: list[Socket] = []
    for namespace in namespaces:
        try:
            sockets += sock_diag.open_sockets(namespace)
        except OSError as error:
            if namespace.inode == own.inode:
                raise EngineUnavailable(
                    f"sock_diag does not answer ({error}): the kernel needs CONFIG_INET_DIAG and "
                    "CONFIG_INET_UDP_DIAG, or their modules (modprobe inet_diag tcp_diag udp_diag)"
                ) from None
            continue  # the namespace ended after it was listed
    return sockets


def with_holders(sockets: list[Socket], membership: Members | Lineage) -> list[OpenSocket]:
    """Return each socket with the processes that hold it, and with the trees of these processes."""
    if not sockets:
        return []
    holders = holders_by_inode({socket.inode for socket in sockets if socket.inode})
    held = ((socket, holders.get(socket.inode or 0, ())) for socket in sockets)
    return [OpenSocket(socket, processes, membership.of(*processes)) for socket, processes in held]


def current_limits() -> tuple[limits.Limit, ...]:
    """Return the limits that apply with the capabilities of this process."""
    effective = capabilities.effective()
    current = [*LIMITS]
    if not capabilities.has(capabilities.SYS_ADMIN, effective):
        current.append(limits.OTHER_NAMESPACES)
    if not capabilities.has(capabilities.SYS_PTRACE, effective):
        current.append(limits.OTHER_OWNERS)
    return tuple(current)
