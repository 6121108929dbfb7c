"""The container and Kubernetes pod of a process, from the path of its cgroup."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from portwatch.errors import PortwatchError
from portwatch.linux import cgroups, procfs

_CONTAINER = re.compile(
    r"(?:[/:](?:docker|cri-containerd|crio|nerdctl|libpod|libpod-payload)[-:]"  # usually a systemd scope
    r"|/(?:docker|libpod|default|k8s\.io|moby)/"
    r"|/kubepods[^/]*/(?:[^/]+/)*[^/]*pod[^/]+/)"
    r"([0-9a-f]{64})(?:\.scope)?(?=/|$)"
)
_LEAF = re.compile(
    r"(?:(?:docker|cri-containerd|crio|nerdctl|libpod|libpod-payload)-)?([0-9a-f]{64})(?:\.scope)?"
)
"""Matches the last component of a cgroup path. Used if the rest of the path is unknown."""
_CTR = re.compile(r"^/default/([A-Za-z0-9][\w.-]*)")
"""Matches a container of ctr, the command of containerd, in its default namespace. Its id can be any text."""
_POD = re.compile(
    r"/[^/]*kubepods.*[/-]pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?=[/.:]|$)"
)


class CgroupInfo(NamedTuple):
    """The path of a cgroup, and the ids of its container and pod. A missing or unknown value is None."""

    cgroup: str | None = None
    container: str | None = None
    pod: str | None = None


def from_cgroup_path(path: str) -> CgroupInfo:
    """Return the container and pod that a cgroup path names. If containers are nested, use the innermost."""
    ids = _CONTAINER.findall(path) or _CTR.findall(path)
    pods = _POD.findall(path)
    return CgroupInfo(path, ids[-1] if ids else None, pods[-1].replace("_", "-") if pods else None)


@lru_cache(maxsize=1024)
def parse_proc_cgroup(content: str) -> CgroupInfo:
    """Return the cgroup, container and pod that the content of /proc/PID/cgroup names.

    On a hybrid host (cgroup v1 and v2) the v2 path is often the root. The deepest v1 path is then used instead.
    """
    lines = [line.split(":", 2) for line in content.splitlines()]
    infos = [from_cgroup_path(path) for _, _, path in lines]
    path = next((path for _, controllers, path in lines if not controllers), None)
    if path in (None, "/"):
        path = max(
            (path for _, _, path in lines), key=lambda path: path.count("/") * (path != "/"), default=path
        )
    return CgroupInfo(
        path,
        next((info.container for info in infos if info.container), None),
        next((info.pod for info in infos if info.pod), None),
    )


def of_process(pid: int) -> CgroupInfo:
    """Return the cgroup, container and pod of a process. Raise the errors of procfs.UNREADABLE."""
    info = parse_proc_cgroup(procfs.read(pid, "cgroup").decode("utf-8", "backslashreplace"))
    # In a private cgroup namespace, paths in /proc are relative to its root and mean nothing outside of it.
    return info._replace(cgroup=None) if cgroups.is_namespaced() else info


@lru_cache(maxsize=4096)
def of_recorded_process(pid: int, start_time: int, cgroup_id: int, leaf: str) -> CgroupInfo:
    """Return what is known about the cgroup, container and pod of the process in a record.

    The process may have ended. `leaf` is the last component of its cgroup path, recorded by BPF. If the host
    uses the v1 memory controller, `leaf` comes from the path in that controller's hierarchy.
    """
    info = _look_up(pid, start_time, cgroup_id)
    if info.container or (info.cgroup and info.cgroup.endswith(f"/{leaf}")):
        return info
    match = _LEAF.fullmatch(leaf)
    return info._replace(container=match[1]) if match else info


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
            pass  # the process has ended: use the path found by cgroup id
    # On a hybrid host, the v2 path "/" says nothing, because the process may be in a v1 cgroup.
    return from_cgroup_path(path) if path and path != "/" else CgroupInfo()


def find_container(prefix: str) -> str:
    """Return the full id of the running container whose id starts with `prefix`.

    An exact match is preferred. Raise PortwatchError if no container matches, or if several do.
    """
    running = set()
    for pid in procfs.pids():
        try:
            running.add(of_process(pid).container)
        except procfs.UNREADABLE:
            continue  # the process has ended, or this user may not see it
    matches = sorted(id_ for id_ in running if id_ and id_.startswith(prefix)) if prefix else []
    if prefix in matches:
        return prefix
    if len(matches) > 1:
        shown = ", ".join(id_[: max(12, len(prefix) + 4)] for id_ in matches[:3])
        more = f" and {len(matches) - 3} more" if len(matches) > 3 else ""
        raise PortwatchError(
            f"{prefix!r} matches several containers: {shown}{more}. Give more characters of the id"
        )
    if not matches:
        hidden = (
            "" if procfs.shows_kernel_pids() else " in this /proc (which may hide some: see portwatch doctor)"
        )
        raise PortwatchError(
            f"no running container{hidden} has an id that starts with {prefix!r}. To get the id of a container "
            f"by its name, ask its runtime: docker inspect -f '{{{{.Id}}}}' {prefix or 'NAME'}"
        )
    return matches[0]
