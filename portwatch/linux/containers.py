"""The container and the Kubernetes pod that a cgroup's path names."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from portwatch.errors import PortwatchError
from portwatch.linux import cgroups, procfs

_CONTAINER = re.compile(
    r"(?:[/:](?:docker|cri-containerd|crio|nerdctl|libpod|libpod-payload)[-:]"  # most often a systemd scope
    r"|/(?:docker|libpod|default|k8s\.io|moby)/"
    r"|/kubepods[^/]*/(?:[^/]+/)*[^/]*pod[^/]+/)"
    r"([0-9a-f]{64})(?:\.scope)?(?=/|$)"
)
_LEAF = re.compile(
    r"(?:(?:docker|cri-containerd|crio|nerdctl|libpod|libpod-payload)-)?([0-9a-f]{64})(?:\.scope)?"
)
"""The same where only the last component of a path is known."""
_CTR = re.compile(r"^/default/([A-Za-z0-9][\w.-]*)")
"""ctr puts containers into the namespace `default` unless told otherwise, under any name."""
_POD = re.compile(
    r"/[^/]*kubepods.*[/-]pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?=[/.:]|$)"
)


class CgroupInfo(NamedTuple):
    """A cgroup's path, and the container and pod that it belongs to. None means unknown or none."""

    cgroup: str | None = None
    container: str | None = None
    pod: str | None = None


def from_cgroup_path(path: str) -> CgroupInfo:
    """Return what a path says: of nested containers and pods, the innermost."""
    ids = _CONTAINER.findall(path) or _CTR.findall(path)
    pods = _POD.findall(path)
    return CgroupInfo(path, ids[-1] if ids else None, pods[-1].replace("_", "-") if pods else None)


@lru_cache(maxsize=1024)
def parse_proc_cgroup(content: str) -> CgroupInfo:
    """Return what the text of /proc/PID/cgroup says.

    On a hybrid host the v2 path is the root for every process: the deepest v1 path is used instead.
    """
    lines = [line.split(":", 2) for line in content.splitlines()]
    found = [from_cgroup_path(path) for _, _, path in lines]
    path = next((path for _, controllers, path in lines if not controllers), None)
    if path in (None, "/"):
        path = max(
            (path for _, _, path in lines), key=lambda path: path.count("/") * (path != "/"), default=path
        )
    return CgroupInfo(
        path,
        next((one.container for one in found if one.container), None),
        next((one.pod for one in found if one.pod), None),
    )


def of_process(pid: int) -> CgroupInfo:
    """Return where a process is now. Raise the errors of procfs.UNREADABLE."""
    info = parse_proc_cgroup(procfs.read(pid, "cgroup").decode("utf-8", "backslashreplace"))
    # In a cgroup namespace, /proc shows paths that start at the namespace's root: useless outside of it.
    return info._replace(cgroup=None) if cgroups.is_namespaced() else info


@lru_cache(maxsize=4096)
def of_recorded_process(pid: int, start_time: int, cgroup_id: int, leaf: str) -> CgroupInfo:
    """Return where the process of a record was, even if it and its cgroup are gone.

    `leaf` is the name of its cgroup at that time: of v1's memory controller where that is in use.
    """
    info = _look_up(pid, start_time, cgroup_id)
    if info.container or (info.cgroup and info.cgroup.endswith(f"/{leaf}")):
        return info
    found = _LEAF.fullmatch(leaf)
    return info._replace(container=found[1]) if found else info


def _look_up(pid: int, start_time: int, cgroup_id: int) -> CgroupInfo:
    path = cgroups.path_of(cgroup_id)
    if path and cgroups.is_v2_only():
        return from_cgroup_path(path)
    if procfs.shows_kernel_pids():
        try:
            info = of_process(pid)
            if procfs.stat(pid)[2] == start_time:
                return info
        except procfs.UNREADABLE:
            pass  # it has ended: the path by id is what is left
    # On a hybrid host "/" only means that v1 would know more.
    return from_cgroup_path(path) if path and path != "/" else CgroupInfo()


def find_container(prefix: str) -> str:
    """Return the full id of the one running container whose id starts with `prefix`. Raise PortwatchError."""
    running = set()
    for pid in procfs.pids():
        try:
            running.add(of_process(pid).container)
        except procfs.UNREADABLE:
            continue  # it has ended, or this user may not see it
    found = sorted(one for one in running if one and one.startswith(prefix)) if prefix else []
    if prefix in found:
        return prefix
    if len(found) > 1:
        shown = " and ".join(one[: max(12, len(prefix) + 4)] for one in found[:3])
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise PortwatchError(f"{prefix!r} is the beginning of several containers: {shown}{more}")
    if not found:
        hidden = "" if procfs.shows_kernel_pids() else " (among those that this /proc shows: portwatch doctor)"
        raise PortwatchError(
            f"no running container{hidden} has an id that starts with {prefix!r}. Only its runtime knows a "
            f"container by name: docker inspect -f '{{{{.Id}}}}' {prefix or 'NAME'} prints the id"
        )
    return found[0]
