"""Programs that hold a port only to forward its traffic, such as docker-proxy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePath
from socket import AF_INET6, inet_ntop

from portwatch.event import Listener
from portwatch.linux import netns, procfs
from portwatch.linux.containers import of_process
from portwatch.model import Process


@dataclass(frozen=True, slots=True)
class Forwarder:
    """The target of a port whose holder only forwards, as far as it is known."""

    advice: str
    """What to do instead of ending the forwarder."""
    target: str | None = None
    """Address and port."""
    container: str | None = None
    listeners: tuple[Process, ...] = ()
    """The processes that listen on the target."""


def forwarder_of(
    process: Process, command: tuple[str, ...] | None, listeners: Iterable[Listener]
) -> Forwarder | None:
    """Return what a process forwards to; None if it is not a known forwarder.

    The target is looked for among `listeners`, which should be those of the whole machine.
    """
    program = PurePath(command[0]).name if command else process.process
    describe = _FORWARDERS.get(program) or _FORWARDERS.get(process.process)
    return describe(command or (), listeners) if describe else None


def _docker(command: tuple[str, ...], listeners: Iterable[Listener]) -> Forwarder:
    options = dict(pairwise(command))
    address, port = options.get("-container-ip"), options.get("-container-port")
    if not address or not port or not port.isdecimal():
        return Forwarder("docker ps shows the containers and their ports, docker stop NAME stops one")
    target = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    proto = options.get("-proto", "tcp")
    candidates = [one for one in listeners if (one.socket.port, one.socket.proto) == (int(port), proto)]
    namespace = _namespace_of(address, {one.socket.netns for one in candidates})
    holders = tuple(
        holder
        for one in candidates
        if namespace and one.socket.netns == namespace.inode
        for holder in one.holders
    )
    container = next((holder.container for holder in holders if holder.container), None)
    if not container and namespace and namespace.pid:
        container = _container_of(namespace.pid)
    advice = (
        f"docker stop {container[:12]}"
        if container
        else "docker ps shows which container has the port, docker stop NAME stops it"
    )
    return Forwarder(advice, target, container, holders)


def _namespace_of(address: str, listening: Set[int | None]) -> netns.Namespace | None:
    """Return the network namespace with an address.

    Several may have it, as Docker within Docker uses the same addresses again: then return the only one of them
    in `listening`, the namespaces with a matching listener. Return None if that leaves it open.
    """
    own = netns.own().inode
    namespaces = [
        one for one in netns.all_namespaces() if one.inode != own and one.pid and _has_address(one.pid, address)
    ]
    if len(namespaces) > 1:
        namespaces = [one for one in namespaces if one.inode in listening]
    return namespaces[0] if len(namespaces) == 1 else None


def _has_address(pid: int, address: str) -> bool:
    try:
        return address in _addresses_of(pid)
    except OSError:
        return False  # it has ended, or this user may not look


def _addresses_of(pid: int) -> set[str]:
    """Return the addresses in a process's network namespace, read without entering it."""
    addresses, leaf = set(), ""
    for line in procfs.read(pid, "net/fib_trie").decode("ascii", "replace").splitlines():
        if "|-- " in line:
            leaf = line.rpartition(" ")[2]
        elif "/32 host LOCAL" in line:
            addresses.add(leaf)
    with suppress(FileNotFoundError):  # a kernel without IPv6
        for row in procfs.read(pid, "net/if_inet6").splitlines():
            addresses.add(inet_ntop(AF_INET6, bytes.fromhex(row[:32].decode("ascii"))))
    return addresses


def _container_of(pid: int) -> str | None:
    try:
        return of_process(pid).container
    except procfs.UNREADABLE:
        return None


def _advise(advice: str) -> Callable[[tuple[str, ...], Iterable[Listener]], Forwarder]:
    return lambda _command, _listeners: Forwarder(advice)


_PODMAN = _advise("podman ps shows the containers and their ports, podman stop NAME stops one")

_FORWARDERS = {
    "docker-proxy": _docker,
    "rootlesskit-docker-proxy": _docker,
    "rootlesskit": _advise(
        "a whole rootless container engine runs in it, so ending it ends every container: "
        "docker ps shows which container has the port, docker stop NAME stops it"
    ),
    "rootlessport": _PODMAN,
    "slirp4netns": _PODMAN,
    "pasta": _PODMAN,
    "pasta.avx2": _PODMAN,
    "kubectl": _advise("ending it closes the tunnel and stops nothing in the cluster"),
    "ssh": _advise("ending it ends the whole SSH connection and stops nothing on the other side"),
    "socat": _advise("its command line shows the target, which goes on without it"),
}
"""By the name of the program."""
