"""Finding cgroups by id and by path. Tests with real cgroups are skipped if this user may not create them."""

import os
from errno import EMFILE
from pathlib import Path

import pytest

from portwatch import NotPermitted, PortwatchError
from portwatch.linux import cgroups, mounts
from portwatch.linux.mounts import Mount

V1, V2 = "cgroup", "cgroup2"


@pytest.fixture
def hybrid(monkeypatch, tmp_path):
    """A fake host with a v1 and a v2 hierarchy."""
    (tmp_path / "memory/docker/abc").mkdir(parents=True)
    (tmp_path / "unified/system.slice/nginx.service").mkdir(parents=True)
    (tmp_path / "unified/file").touch()
    mounted = [Mount("/", str(tmp_path / "memory"), V1), Mount("/", str(tmp_path / "unified"), V2)]
    monkeypatch.setattr(mounts, "mounts", lambda: iter(mounted))
    monkeypatch.setattr(mounts, "_cgroup_directories", lambda: iter(()))
    monkeypatch.setattr(cgroups, "is_namespaced", lambda: False)
    monkeypatch.setattr(cgroups, "path_of", lambda _: None)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/system.slice/nginx.service", "/system.slice/nginx.service"),
        ("system.slice/nginx.service/", "/system.slice/nginx.service"),
        ("//system.slice/./nginx.service", "/system.slice/nginx.service"),
        ("{}/unified/system.slice/nginx.service", "/system.slice/nginx.service"),
        ("{}/unified", "/"),
        ("/", "/"),
        ("/docker/abc", "/docker/abc"),
        ("{}/memory/docker/abc", "/docker/abc"),
    ],
)
def test_find_accepts_a_path_with_or_without_the_mount_point(hybrid, text, path):
    assert cgroups.find(text.format(hybrid)) == path


def test_find_interprets_a_path_relative_to_the_innermost_mount_point(hybrid, monkeypatch):
    (hybrid / "unified/net_cls/below").mkdir(parents=True)
    mounted = [Mount("/", str(hybrid / "unified"), V2), Mount("/", str(hybrid / "unified/net_cls"), V1)]
    monkeypatch.setattr(mounts, "mounts", lambda: iter(mounted))
    assert cgroups.find(f"{hybrid}/unified/net_cls/below") == "/below"


@pytest.mark.parametrize(
    "text", ["/nosuch", "{}/unified/docker/abc", "{}/unifiedx", "{}/unified/file", "/system.slice/../nosuch"]
)
def test_find_raises_if_there_is_no_such_cgroup(hybrid, text):
    with pytest.raises(PortwatchError, match=r"there is no cgroup .*systemd-cgls"):
        cgroups.find(text.format(hybrid))


def test_find_raises_for_an_empty_path_instead_of_returning_the_root():
    with pytest.raises(PortwatchError, match="the path of the cgroup is empty"):
        cgroups.find("")


@pytest.mark.parametrize("text", ["/system.slice", "/nosuch"])
@pytest.mark.usefixtures("hybrid")
def test_find_raises_not_permitted_in_a_private_cgroup_namespace(monkeypatch, text):
    monkeypatch.setattr(cgroups, "is_namespaced", lambda: True)
    with pytest.raises(NotPermitted, match="--cgroupns=host"):
        cgroups.find(text)


@pytest.fixture
def real_cgroup():
    """The path of a cgroup that the kernel really has. It has one child, `below`."""
    mount = next((mount.point for mount in mounts.mounts() if mount.kind == V2), None)
    path = Path(mount or "/nosuch") / f"portwatch-test-{os.getpid()}"
    try:
        (path / "below").mkdir(parents=True)
    except OSError:
        pytest.skip("this user may not create cgroups")
    yield path
    for directory in (path / "below", path):
        if directory.exists():
            directory.rmdir()


def test_path_of_and_find_return_the_path_from_the_root_of_the_hierarchy(real_cgroup):
    assert cgroups.path_of(real_cgroup.stat().st_ino) == f"/{real_cgroup.name}"
    assert cgroups.path_of((real_cgroup / "below").stat().st_ino) == f"/{real_cgroup.name}/below"
    assert cgroups.path_of(mounts.ROOT_INODE) == "/"
    for text in (str(real_cgroup / "below"), f"{real_cgroup.name}/below"):
        assert cgroups.find(text) == f"/{real_cgroup.name}/below"


def test_path_of_works_if_the_cgroup_file_system_is_not_mounted(real_cgroup, monkeypatch):
    monkeypatch.setattr(mounts, "_cgroup_directories", lambda: iter([mounts.detached_mount(V2)]))
    cgroups._path_of.cache_clear()
    assert cgroups.path_of((real_cgroup / "below").stat().st_ino) == f"/{real_cgroup.name}/below"


def test_find_finds_cgroups_outside_a_private_namespace_if_the_hierarchy_root_is_reachable(
    real_cgroup, monkeypatch
):
    inner = Mount("/", str(real_cgroup / "below"), V2)
    root = next(mount.point for mount in mounts.mounts() if mount.kind == V2)
    monkeypatch.setattr(cgroups, "is_namespaced", lambda: True)
    monkeypatch.setattr(mounts, "mounts", lambda: iter([inner]))
    monkeypatch.setattr(
        mounts, "_cgroup_directories", lambda: iter([os.open(root, os.O_RDONLY | os.O_DIRECTORY)])
    )
    cgroups._path_of.cache_clear()
    assert cgroups.find(f"/{real_cgroup.name}") == f"/{real_cgroup.name}"
    assert cgroups.find("/") == f"/{real_cgroup.name}/below", "the root of the container's namespace"
    with pytest.raises(NotPermitted):
        cgroups.find(f"{inner.point}/{real_cgroup.name}")


def test_a_removed_cgroup_is_found_neither_by_id_nor_by_path(real_cgroup):
    inode = (real_cgroup / "below").stat().st_ino
    (real_cgroup / "below").rmdir()
    assert cgroups.path_of(inode) is None
    assert cgroups.path_of(0) is None
    with pytest.raises(PortwatchError, match="or it was removed"):
        cgroups.find(f"{real_cgroup.name}/below")


def test_path_of_does_not_cache_failures(real_cgroup, monkeypatch):
    inode = real_cgroup.stat().st_ino

    def refuse(*_, **__):
        raise OSError(EMFILE, os.strerror(EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        assert cgroups.path_of(inode) is None
    assert cgroups.path_of(inode) == f"/{real_cgroup.name}"


def test_path_of_closes_its_descriptors(real_cgroup):
    def descriptors_after_lookup():
        cgroups._path_of.cache_clear()
        cgroups.path_of(real_cgroup.stat().st_ino)
        return sorted(os.listdir("/proc/self/fd"))

    assert descriptors_after_lookup() == descriptors_after_lookup()
