"""What is open now, where no BPF iterator can tell: sock_diag, and /proc for the owners."""

from __future__ import annotations

from portwatch.engines import limits as caps
from portwatch.engines.members import Members
from portwatch.errors import EngineUnavailable
from portwatch.linux import capabilities, netns
from portwatch.linux.lineage import Lineage
from portwatch.model import OpenSocket, Snapshot, Socket
from portwatch.snapshot import sock_diag
from portwatch.snapshot.owners import holders_of

LIMITS = (caps.EPHEMERAL_UDP, caps.EMPTY_NAMESPACES)
"""What this cannot tell, whatever our rights."""


def take_snapshot(membership: Members | Lineage) -> Snapshot:
    """Every open socket of every network namespace that we may enter, with its holders and their trees."""
    held = with_holders(open_sockets(), membership)
    return Snapshot(tuple(held), {one.socket.inode for one in held})


def open_sockets() -> list[Socket]:
    """The same without holders. Raises EngineUnavailable."""
    own = netns.own()
    namespaces = (
        netns.all_namespaces() if capabilities.has(capabilities.SYS_ADMIN, capabilities.effective()) else [own]
    )
    found: list[Socket] = []
    for namespace in namespaces:
        try:
            found += sock_diag.open_sockets(namespace)
        except OSError as error:
            if namespace.inode == own.inode:
                raise EngineUnavailable(
                    f"sock_diag does not answer ({error}): the kernel needs CONFIG_INET_DIAG and "
                    "CONFIG_INET_UDP_DIAG, or their modules (modprobe inet_diag tcp_diag udp_diag)"
                ) from None
            continue  # the namespace ended while we went through them
    return found


def with_holders(sockets: list[Socket], membership: Members | Lineage) -> list[OpenSocket]:
    """Sockets with the processes that hold them, and the trees of these."""
    if not sockets:
        return []
    holders = holders_of({socket.inode for socket in sockets if socket.inode})
    found = ((socket, holders.get(socket.inode or 0, ())) for socket in sockets)
    return [OpenSocket(socket, processes, membership.of(*processes)) for socket, processes in found]


def limits() -> tuple[caps.Limit, ...]:
    """What this cannot tell, with the rights that we have."""
    effective = capabilities.effective()
    found = [*LIMITS]
    if not capabilities.has(capabilities.SYS_ADMIN, effective):
        found.append(caps.OTHER_NAMESPACES)
    if not capabilities.has(capabilities.SYS_PTRACE, effective):
        found.append(caps.OTHER_OWNERS)
    return tuple(found)
