"""What is open now, where no BPF iterator can tell: sock_diag, and /proc for the owners."""

from __future__ import annotations

from portwatch import rights
from portwatch.engines import capabilities as caps
from portwatch.errors import EngineUnavailable
from portwatch.model import Held, Snapshot, Socket
from portwatch.snapshot import diag, netns
from portwatch.snapshot.owners import holders_of
from portwatch.tree import Lineage, Members

LIMITS = (caps.EPHEMERAL_UDP, caps.EMPTY_NAMESPACES)
"""What this cannot tell, whatever our rights."""


def held_sockets(membership: Members | Lineage) -> Snapshot:
    """Every open socket of every network namespace that we may enter, with its holders and their trees."""
    held = with_holders(open_sockets(), membership)
    return Snapshot(tuple(held), {one.socket.inode for one in held})


def open_sockets() -> list[Socket]:
    """The same without holders. Raises EngineUnavailable."""
    own = netns.own()
    namespaces = netns.all_namespaces() if rights.has(rights.SYS_ADMIN, rights.effective()) else [own]
    found: list[Socket] = []
    for namespace in namespaces:
        try:
            found += diag.open_sockets(namespace)
        except OSError as error:
            if namespace.inode == own.inode:
                raise EngineUnavailable(
                    f"sock_diag does not answer ({error}): the kernel needs CONFIG_INET_DIAG and "
                    "CONFIG_INET_UDP_DIAG, or their modules (modprobe inet_diag tcp_diag udp_diag)"
                ) from None
            continue  # the namespace ended while we went through them
    return found


def with_holders(sockets: list[Socket], membership: Members | Lineage) -> list[Held]:
    """Sockets with the processes that hold them, and the trees of these."""
    if not sockets:
        return []
    holders = holders_of({socket.inode for socket in sockets if socket.inode})
    found = ((socket, holders.get(socket.inode or 0, ())) for socket in sockets)
    return [Held(socket, processes, membership.of(*processes)) for socket, processes in found]


def limits() -> tuple[caps.Limit, ...]:
    """What this cannot tell, with the rights that we have."""
    effective = rights.effective()
    found = [*LIMITS]
    if not rights.has(rights.SYS_ADMIN, effective):
        found.append(caps.OTHER_NAMESPACES)
    if not rights.has(rights.SYS_PTRACE, effective):
        found.append(caps.OTHER_OWNERS)
    return tuple(found)
