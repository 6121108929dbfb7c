"""Where a process lives: its cgroup, and the container and the pod that the cgroup's name tells."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from portwatch import cgroups, procfs
from portwatch.errors import PortwatchError

_CONTAINER = re.compile(
    r"(?:[/:](?:docker|cri-containerd|crio|nerdctl|libpod|libpod-payload)[-:]"  # a scope of systemd's, mostly
    r"|/(?:docker|libpod|default|k8s\.io|moby)/"
    r"|/kubepods[^/]*/(?:[^/]+/)*[^/]*pod[^/]+/)"
    r"([0-9a-f]{64})(?:\.scope)?(?=/|$)"
)
_LEAF = re.compile(
    r"(?:(?:docker|cri-containerd|crio|nerdctl|libpod|libpod-payload)-)?([0-9a-f]{64})(?:\.scope)?"
)
"""The same where only the last part of a path is known."""
_OF_CTR = re.compile(r"^/default/([A-Za-z0-9][\w.-]*)")
"""Where ctr has nobody choose a namespace; its users name containers as they like."""
_POD = re.compile(
    r"/[^/]*kubepods.*[/-]pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?=[/.:]|$)"
)


class Place(NamedTuple):
    """A cgroup's path, and whose it is; None for what is not known, or not there."""

    cgroup: str | None = None
    container: str | None = None
    pod: str | None = None


def place_at(path: str) -> Place:
    """What a cgroup's path tells: the innermost container and the innermost pod."""
    ids = _CONTAINER.findall(path) or _OF_CTR.findall(path)
    pods = _POD.findall(path)
    return Place(path, ids[-1] if ids else None, pods[-1].replace("_", "-") if pods else None)


@lru_cache(maxsize=1024)
def parse_cgroups(content: str) -> Place:
    """The same from the text of /proc/PID/cgroup.

    On a hybrid host the v2 path is the root for everyone; there the deepest v1
    path is the one that says something.
    """
    lines = [line.split(":", 2) for line in content.splitlines()]
    places = [place_at(path) for _, _, path in lines]
    path = next((path for _, controllers, path in lines if not controllers), None)
    if path in (None, "/"):
        path = max(
            (path for _, _, path in lines), key=lambda path: path.count("/") * (path != "/"), default=path
        )
    return Place(
        path,
        next((place.container for place in places if place.container), None),
        next((place.pod for place in places if place.pod), None),
    )


def place_of(pid: int) -> Place:
    """Where a process is now. Raises the errors of procfs.UNREADABLE."""
    place = parse_cgroups(procfs.read(pid, "cgroup").decode("utf-8", "backslashreplace"))
    # Seen from a container's cgroup namespace, paths begin at that container.
    return place._replace(cgroup=None) if cgroups.is_namespaced() else place


@lru_cache(maxsize=4096)
def place_at_event(pid: int, start_time: int, cgroup_id: int, leaf: str) -> Place:
    """Where the process of a record was, also when it has ended since, and its cgroup with it.

    `leaf` is the name of its cgroup then, of v1's memory controller where that is in use.
    """
    place = _place_at_event(pid, start_time, cgroup_id)
    if place.container or (place.cgroup and place.cgroup.endswith(f"/{leaf}")):
        return place
    found = _LEAF.fullmatch(leaf)
    return place._replace(container=found[1]) if found else place


def _place_at_event(pid: int, start_time: int, cgroup_id: int) -> Place:
    path = cgroups.path_of(cgroup_id)
    if path and cgroups.are_all_v2():
        return place_at(path)
    if procfs.has_kernels_pids():
        try:
            place = place_of(pid)
            if procfs.stat(pid)[2] == start_time:
                return place
        except procfs.UNREADABLE:
            pass
    # On a hybrid host the root of v2 is where everybody is of whom only v1 could tell more.
    return place_at(path) if path and path != "/" else Place()


def find_container(prefix: str) -> str:
    """The id, in full, of the one container with processes that begins so. Raises PortwatchError."""
    running = set()
    for pid in procfs.pids():
        try:
            running.add(place_of(pid).container)
        except procfs.UNREADABLE:
            continue  # it ended, or is not ours to see
    found = sorted(one for one in running if one and one.startswith(prefix)) if prefix else []
    if prefix in found:
        return prefix
    if len(found) > 1:
        shown = " and ".join(one[: max(12, len(prefix) + 4)] for one in found[:3])
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise PortwatchError(f"{prefix!r} is the beginning of several containers: {shown}{more}")
    if not found:
        hidden = "" if procfs.has_kernels_pids() else " (of those that this /proc shows: see portwatch doctor)"
        raise PortwatchError(
            f"no container that runs{hidden} has an id that begins with {prefix!r}; names are known to its "
            f"runtime alone: docker inspect -f '{{{{.Id}}}}' {prefix or 'NAME'}, or the like, gives the id"
        )
    return found[0]
