"""Programs that hold a port for somebody else, and whom that is for."""

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
    """Where a port leads whose holder only forwards."""

    advice: str
    """What to do instead of ending the forwarder."""
    target: str | None = None
    container: str | None = None
    listeners: tuple[Process, ...] = ()
    """Who listens there."""


def forwarder_of(
    process: Process, command: tuple[str, ...] | None, listeners: Iterable[Listener]
) -> Forwarder | None:
    """Where the port leads that a process holds, if it is one that is known to forward.

    `listeners` are those of the whole machine: who is behind it is looked for among them.
    """
    called = PurePath(command[0]).name if command else process.process
    find = _FORWARDERS.get(called) or _FORWARDERS.get(process.process)
    return find(command or (), listeners) if find else None


def _docker(command: tuple[str, ...], listeners: Iterable[Listener]) -> Forwarder:
    options = dict(pairwise(command))
    address, port = options.get("-container-ip"), options.get("-container-port")
    if not address or not port or not port.isdecimal():
        return Forwarder("docker ps shows the containers with their ports; docker stop NAME ends one")
    target = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    proto = options.get("-proto", "tcp")
    listening = [one for one in listeners if (one.socket.port, one.socket.proto) == (int(port), proto)]
    inside = _namespace_of(address, {one.socket.netns for one in listening})
    behind = tuple(
        holder for one in listening if inside and one.socket.netns == inside.inode for holder in one.holders
    )
    container = next((one.container for one in behind if one.container), None)
    if not container and inside and inside.pid:
        container = _container(inside.pid)
    advice = (
        f"docker stop {container[:12]}"
        if container
        else "docker ps shows which container has the port; docker stop NAME"
    )
    return Forwarder(advice, target, container, behind)


def _namespace_of(address: str, listening: Set[int | None]) -> netns.Namespace | None:
    """The one network namespace that has an address, or the one of several where somebody listens.

    Addresses repeat: docker within docker gives the same ones again.
    """
    own = netns.own().inode
    found = [one for one in netns.all_namespaces() if one.inode != own and one.pid and _has(one.pid, address)]
    if len(found) > 1:
        found = [one for one in found if one.inode in listening]
    return found[0] if len(found) == 1 else None


def _has(pid: int, address: str) -> bool:
    try:
        return address in _addresses(pid)
    except OSError:
        return False  # it ended meanwhile, or is not ours to see


def _addresses(pid: int) -> set[str]:
    """The addresses of a process's network namespace, without entering it."""
    found, leaf = set(), ""
    for line in procfs.read(pid, "net/fib_trie").decode("ascii", "replace").splitlines():
        if "|-- " in line:
            leaf = line.rpartition(" ")[2]
        elif "/32 host LOCAL" in line:
            found.add(leaf)
    with suppress(FileNotFoundError):  # without IPv6
        for row in procfs.read(pid, "net/if_inet6").splitlines():
            found.add(inet_ntop(AF_INET6, bytes.fromhex(row[:32].decode("ascii"))))
    return found


def _container(pid: int) -> str | None:
    try:
        return of_process(pid).container
    except procfs.UNREADABLE:
        return None


def _advise(advice: str) -> Callable[[tuple[str, ...], Iterable[Listener]], Forwarder]:
    return lambda _command, _listeners: Forwarder(advice)


_PODMAN = _advise("podman ps shows the containers with their ports; podman stop NAME ends one")

_FORWARDERS = {
    "docker-proxy": _docker,
    "rootlesskit-docker-proxy": _docker,
    "rootlesskit": _advise(
        "a whole rootless dockerd, or the like, runs in it: ending it ends every container; "
        "docker ps shows which has the port; docker stop NAME"
    ),
    "rootlessport": _PODMAN,
    "slirp4netns": _PODMAN,
    "pasta": _PODMAN,
    "pasta.avx2": _PODMAN,
    "kubectl": _advise("ending it ends the way into the cluster, and nothing in the cluster"),
    "ssh": _advise("ending it ends the whole connection, and nothing on the other side"),
    "socat": _advise("its command line says where to; ending it ends nothing there"),
}
"""By what they are called."""
