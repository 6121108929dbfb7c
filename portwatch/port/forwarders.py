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
    """A process that holds a port only to forward its traffic. Unknown facts about its target are None."""

    advice: str
    """What to do instead of ending the forwarder."""
    target: str | None = None
    """The address and port to which traffic is forwarded."""
    container: str | None = None
    """The id of the container that the target is in."""
    listeners: tuple[Process, ...] = ()
    """The processes that listen on the target."""


def forwarder_of(
    process: Process, command: tuple[str, ...] | None, listeners: Iterable[Listener]
) -> Forwarder | None:
    """Return advice on a forwarder and its target. Return None if the process is not a known forwarder.

    The target is searched for in `listeners`, so pass the listeners of the whole machine.
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
    candidates = [listener for listener in listeners if (listener.port, listener.proto) == (int(port), proto)]
    namespace = _namespace_of(address, {listener.netns for listener in candidates})
    holders = tuple(
        holder
        for listener in candidates
        if namespace and listener.netns == namespace.inode
        for holder in listener.holders
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
    """Return the network namespace that has an address, or None if no single namespace can be determined.

    Several namespaces may have the same address, because Docker in Docker uses the same addresses again. In
    that case, consider only those in `listening`, which are the namespaces with a listener on the target port.
    """
    own = netns.own().inode
    namespaces = [
        namespace
        for namespace in netns.all_namespaces()
        if namespace.inode != own and namespace.pid and _has_address(namespace.pid, address)
    ]
    if len(namespaces) > 1:
        namespaces = [namespace for namespace in namespaces if namespace.inode in listening]
    return namespaces[0] if len(namespaces) == 1 else None


def _has_address(pid: int, address: str) -> bool:
    try:
        return address in _addresses_of(pid)
    except OSError:
        return False  # the process has ended, or this user may not read its files


def _addresses_of(pid: int) -> set[str]:
    """Return the addresses of a process's network namespace, without entering that namespace."""
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
    "socat": _advise("its command line shows the target, which keeps running without it"),
}
"""Functions that describe a forwarder, by the name of its program."""
