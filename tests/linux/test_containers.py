"""Containers and pods from the cgroup paths of different runtimes, cgroup drivers and cgroup versions."""

import os
import subprocess

import pytest

from portwatch import PortwatchError
from portwatch.linux import cgroups, containers, procfs
from portwatch.linux.containers import (
    CgroupInfo,
    find_container,
    from_cgroup_path,
    of_recorded_process,
    parse_proc_cgroup,
)

ID = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4
UID = "2b5b8b1c-3f0e-4d5e-9a7b-0c1d2e3f4a5b"
_UID = UID.replace("-", "_")
STATIC = "a1b2c3d4" * 4


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(f"/system.slice/docker-{ID}.scope", id="docker, systemd"),
        pytest.param(f"/docker/{ID}", id="docker, cgroupfs"),
        pytest.param(f"/docker/{ID}/init.scope", id="systemd in docker"),
        pytest.param(f"/docker/{OTHER}/docker/{ID}", id="docker in docker"),
        pytest.param(
            f"/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{ID}.scope", id="rootless"
        ),
        pytest.param(f"/system.slice/nerdctl-{ID}.scope", id="nerdctl, systemd"),
        pytest.param(f"/default/{ID}", id="nerdctl, cgroupfs"),
        pytest.param(f"/k8s.io/{ID}", id="containerd"),
        pytest.param(f"/machine.slice/libpod-{ID}.scope", id="podman, systemd"),
        pytest.param(f"/machine.slice/libpod-{ID}.scope/container", id="podman with crun"),
        pytest.param(f"/libpod_parent/libpod-{ID}", id="podman, cgroupfs"),
        pytest.param(f"/system.slice/web.service/libpod-payload-{ID}", id="podman in a unit of its own"),
        pytest.param(
            f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container",
            id="podman, rootless",
        ),
    ],
)
def test_the_container_of_a_path_is_the_innermost_one_that_it_names(path):
    assert from_cgroup_path(path) == CgroupInfo(path, ID, None)


@pytest.mark.parametrize(
    ("path", "uid"),
    [
        (
            f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{_UID}.slice/cri-containerd-{ID}.scope",
            UID,
        ),
        (f"/kubepods.slice/kubepods-pod{_UID}.slice/crio-{ID}.scope", UID),
        (f"/kubepods.slice/kubepods-pod{_UID}.slice/crio-{ID}.scope/container", UID),
        (
            f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{_UID}.slice/docker-{ID}.scope",
            UID,
        ),
        (f"/kubepods/besteffort/pod{UID}/{ID}", UID),
        (f"/kubepods/pod{UID}/{ID}", UID),
        (f"/kubepods/burstable/pod{UID}/crio-{ID}", UID),
        (f"/system.slice/containerd.service/kubepods-burstable-pod{_UID}.slice:cri-containerd:{ID}", UID),
        (
            f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice/crio-{ID}.scope",
            STATIC,
        ),
        (f"/kubepods/burstable/pod{STATIC}/{ID}", STATIC),
        (
            f"/docker/{OTHER}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{_UID}.slice/"
            f"cri-containerd-{ID}.scope",
            UID,
        ),
    ],
)
def test_the_pod_uid_has_hyphens_as_kubernetes_prints_it(path, uid):
    assert from_cgroup_path(path) == CgroupInfo(path, ID, uid)


def test_the_cgroup_of_a_whole_pod_has_a_pod_but_no_container():
    assert from_cgroup_path(f"/kubepods/besteffort/pod{UID}") == CgroupInfo(
        f"/kubepods/besteffort/pod{UID}", None, UID
    )


def test_a_container_id_of_ctr_can_be_any_text():
    assert from_cgroup_path("/default/web-1").container == "web-1"
    assert from_cgroup_path("/default").container is None
    assert from_cgroup_path("/system.slice/default/web").container is None


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/user.slice",
        "/system.slice/docker.service",
        f"/machine.slice/libpod-conmon-{ID}.scope",
        f"/kubepods.slice/crio-conmon-{ID}.scope",
        f"/other/{ID}",
        f"/docker/{ID[:-1]}",
        f"/docker/{ID}0",
        f"/system.slice/pod{UID}.service",
    ],
)
def test_a_cgroup_that_only_resembles_that_of_a_container_has_no_container(path):
    assert from_cgroup_path(path) == CgroupInfo(path, None, None)


def test_parse_proc_cgroup_accepts_the_single_line_of_cgroup_v2():
    assert parse_proc_cgroup(f"0::/system.slice/docker-{ID}.scope\n") == CgroupInfo(
        f"/system.slice/docker-{ID}.scope", ID
    )


def test_parse_proc_cgroup_accepts_a_line_for_each_v1_hierarchy():
    lines = "".join(
        f"{number}:{name}:/docker/{ID}\n" for number, name in enumerate(("memory", "cpu,cpuacct"), 1)
    )
    assert parse_proc_cgroup(lines) == CgroupInfo(f"/docker/{ID}", ID)


def test_on_a_hybrid_host_a_v2_path_below_the_root_is_used():
    content = f"4:memory:/kubepods/pod{UID}/{ID}\n0::/system.slice/containerd.service\n"
    assert parse_proc_cgroup(content) == CgroupInfo("/system.slice/containerd.service", ID, UID)


def test_on_a_hybrid_host_the_deepest_v1_path_replaces_a_v2_path_of_the_root():
    assert parse_proc_cgroup(f"9:name=systemd:/\n4:memory:/docker/{ID}\n0::/\n") == CgroupInfo(
        f"/docker/{ID}", ID
    )
    assert parse_proc_cgroup("9:name=systemd:/\n0::/\n") == CgroupInfo("/")


@pytest.fixture(autouse=True)
def _clear_cache():
    of_recorded_process.cache_clear()
    yield
    of_recorded_process.cache_clear()


def test_nothing_is_known_of_a_recorded_process_if_another_process_has_its_pid():
    start = procfs.own_start()
    assert of_recorded_process(os.getpid(), start, 0, "").cgroup is not None
    assert of_recorded_process(os.getpid(), start - 10_000_000, 0, "") == CgroupInfo()


def test_a_recorded_process_is_looked_up_only_in_a_procfs_with_kernel_pids(monkeypatch):
    monkeypatch.setattr(procfs, "shows_kernel_pids", lambda: False)
    assert of_recorded_process(os.getpid(), procfs.own_start(), 0, "") == CgroupInfo()


def test_on_v2_the_container_of_an_ended_process_is_found_by_cgroup_id(monkeypatch):
    monkeypatch.setattr(cgroups, "is_v2_only", lambda: True)
    monkeypatch.setattr(cgroups, "path_of", {7: f"/docker/{ID}", 1: "/"}.get)
    assert of_recorded_process(-1, 0, 7, "") == CgroupInfo(f"/docker/{ID}", ID)
    assert of_recorded_process(-1, 0, 1, "") == CgroupInfo("/")


def test_on_a_hybrid_host_an_ended_process_has_no_cgroup_if_v2_has_only_the_root(
    monkeypatch,
):
    monkeypatch.setattr(cgroups, "is_v2_only", lambda: False)
    monkeypatch.setattr(cgroups, "path_of", {7: f"/docker/{ID}", 1: "/"}.get)
    assert of_recorded_process(-1, 0, 7, "") == CgroupInfo(f"/docker/{ID}", ID)
    assert of_recorded_process(-1, 0, 1, "") == CgroupInfo()


@pytest.mark.parametrize("leaf", [ID, f"docker-{ID}.scope", f"cri-containerd-{ID}.scope", f"crio-{ID}.scope"])
def test_on_a_hybrid_host_the_container_of_an_ended_process_is_found_by_leaf(monkeypatch, leaf):
    monkeypatch.setattr(cgroups, "is_v2_only", lambda: False)
    monkeypatch.setattr(cgroups, "path_of", {7: "/system.slice/containerd.service", 1: "/"}.get)
    assert of_recorded_process(-1, 0, 1, leaf) == CgroupInfo(None, ID)
    assert of_recorded_process(-1, 0, 7, leaf) == CgroupInfo("/system.slice/containerd.service", ID)
    assert of_recorded_process(-1, 0, 1, f"libpod-conmon-{ID}.scope") == CgroupInfo()


def test_the_leaf_is_ignored_if_the_path_of_the_cgroup_is_known(monkeypatch):
    monkeypatch.setattr(cgroups, "is_v2_only", lambda: True)
    monkeypatch.setattr(cgroups, "path_of", {7: f"/other/{ID}", 8: f"/docker/{ID}/init.scope"}.get)
    assert of_recorded_process(-1, 0, 7, ID) == CgroupInfo(f"/other/{ID}")
    assert of_recorded_process(-1, 0, 8, "init.scope") == CgroupInfo(f"/docker/{ID}/init.scope", ID)


def test_in_a_private_cgroup_namespace_the_container_is_known_but_not_the_path(monkeypatch):
    monkeypatch.setattr(cgroups, "is_namespaced", lambda: True)
    monkeypatch.setattr(procfs, "read", lambda *_: f"0::/../docker-{ID}.scope\n".encode())
    assert containers.of_process(1) == CgroupInfo(None, ID)


@pytest.fixture
def running_ids(monkeypatch):
    """Make `ids` the running processes: pids with their container ids. Pid 7 is listed too, but has ended."""
    ids = {1: None, 2: ID, 3: ID, 4: f"{ID[:20]}{OTHER[:44]}", 5: "web", 6: "web2"}
    monkeypatch.setattr(procfs, "pids", lambda: [*ids, 7])

    def of_process(pid):
        if pid not in ids:
            raise ProcessLookupError
        return CgroupInfo("/", ids[pid])

    monkeypatch.setattr(containers, "of_process", of_process)
    return ids


@pytest.mark.usefixtures("running_ids")
def test_find_container_accepts_the_first_characters_of_an_id_and_prefers_an_exact_match():
    assert find_container(ID[:21]) == find_container(ID) == ID
    assert find_container("web") == "web"
    assert find_container("web2") == "web2"


def test_find_container_lists_the_matches_if_there_are_several(running_ids):
    with pytest.raises(PortwatchError) as refusal:
        find_container(ID[:20])
    for container in (ID, running_ids[4]):
        assert container[:24] in str(refusal.value)


@pytest.mark.usefixtures("running_ids")
@pytest.mark.parametrize("text", ["nosuch", ""])
def test_find_container_says_how_to_get_an_id_if_none_matches(text):
    with pytest.raises(PortwatchError, match=r"no running container has an id .* docker inspect"):
        find_container(text)


@pytest.mark.usefixtures("running_ids")
def test_find_container_warns_of_hidden_containers_if_proc_lacks_kernel_pids(monkeypatch):
    monkeypatch.setattr(procfs, "shows_kernel_pids", lambda: False)
    with pytest.raises(PortwatchError, match=r"no running container in this /proc \(which may hide some"):
        find_container("nosuch")


def test_of_process_raises_if_the_process_has_ended():
    ended = subprocess.Popen(["true"])
    ended.wait()
    with pytest.raises(procfs.UNREADABLE):
        containers.of_process(ended.pid)
