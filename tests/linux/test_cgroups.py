"""Cgroups by id and by path; against the kernel's own where one may be made."""

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
    """A v1 and a v2 hierarchy beside each other."""
    (tmp_path / "memory/docker/abc").mkdir(parents=True)
    (tmp_path / "unified/system.slice/nginx.service").mkdir(parents=True)
    (tmp_path / "unified/file").touch()
    found = [Mount("/", str(tmp_path / "memory"), V1), Mount("/", str(tmp_path / "unified"), V2)]
    monkeypatch.setattr(mounts, "mounts", lambda: iter(found))
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
def test_a_path_is_taken_with_or_without_its_mount(hybrid, text, path):
    assert cgroups.find(text.format(hybrid)) == path


def test_a_mount_within_a_mount_is_the_one_that_is_meant(hybrid, monkeypatch):
    (hybrid / "unified/net_cls/below").mkdir(parents=True)
    found = [Mount("/", str(hybrid / "unified"), V2), Mount("/", str(hybrid / "unified/net_cls"), V1)]
    monkeypatch.setattr(mounts, "mounts", lambda: iter(found))
    assert cgroups.find(f"{hybrid}/unified/net_cls/below") == "/below"


@pytest.mark.parametrize(
    "text", ["/nosuch", "{}/unified/docker/abc", "{}/unifiedx", "{}/unified/file", "/system.slice/../nosuch"]
)
def test_a_cgroup_that_is_not_there_is_said(hybrid, text):
    with pytest.raises(PortwatchError, match=r"there is no cgroup .*systemd-cgls"):
        cgroups.find(text.format(hybrid))


def test_no_path_is_no_root():
    with pytest.raises(PortwatchError, match="a cgroup's path is needed"):
        cgroups.find("")


@pytest.mark.parametrize("text", ["/system.slice", "/nosuch"])
@pytest.mark.usefixtures("hybrid")
def test_within_a_cgroup_namespace_whose_root_is_not_the_true_one_it_is_not_guessed(monkeypatch, text):
    monkeypatch.setattr(cgroups, "is_namespaced", lambda: True)
    with pytest.raises(NotPermitted, match="--cgroupns=host"):
        cgroups.find(text)


@pytest.fixture
def made():
    """A cgroup of our own, with one in it."""
    mount = next((mount.point for mount in mounts.mounts() if mount.kind == V2), None)
    path = Path(mount or "/nosuch") / f"portwatch-test-{os.getpid()}"
    try:
        (path / "below").mkdir(parents=True)
    except OSError:
        pytest.skip("no cgroup may be made here")
    yield path
    for one in (path / "below", path):
        if one.exists():
            one.rmdir()


def test_an_id_leads_to_the_path(made):
    assert cgroups.path_of(made.stat().st_ino) == f"/{made.name}"
    assert cgroups.path_of((made / "below").stat().st_ino) == f"/{made.name}/below"
    assert cgroups.path_of(mounts.ROOT_INODE) == "/"
    assert cgroups.find(str(made / "below")) == cgroups.find(f"{made.name}/below") == f"/{made.name}/below"


def test_an_id_leads_to_the_path_where_nobody_has_mounted_cgroups(made, monkeypatch):
    monkeypatch.setattr(mounts, "_cgroup_directories", lambda: iter([mounts.detached_mount(V2)]))
    cgroups._path_of.cache_clear()
    assert cgroups.path_of((made / "below").stat().st_ino) == f"/{made.name}/below"


def test_a_container_may_name_what_is_outside_of_its_cgroup_namespace_if_the_true_root_is_to_be_had(
    made, monkeypatch
):
    inner = Mount("/", str(made / "below"), V2)
    root = next(mount.point for mount in mounts.mounts() if mount.kind == V2)
    monkeypatch.setattr(cgroups, "is_namespaced", lambda: True)
    monkeypatch.setattr(mounts, "mounts", lambda: iter([inner]))
    monkeypatch.setattr(
        mounts, "_cgroup_directories", lambda: iter([os.open(root, os.O_RDONLY | os.O_DIRECTORY)])
    )
    cgroups._path_of.cache_clear()
    assert cgroups.find(f"/{made.name}") == f"/{made.name}"
    assert cgroups.find("/") == f"/{made.name}/below", "as the container counts"
    with pytest.raises(NotPermitted):
        cgroups.find(f"{inner.point}/{made.name}")


def test_what_has_gone_or_never_was_leads_nowhere(made):
    inode = (made / "below").stat().st_ino
    (made / "below").rmdir()
    assert cgroups.path_of(inode) is None
    assert cgroups.path_of(0) is None
    with pytest.raises(PortwatchError, match="or no more"):
        cgroups.find(f"{made.name}/below")


def test_what_could_not_be_looked_for_once_is_looked_for_again(made, monkeypatch):
    inode = made.stat().st_ino

    def refuse(*_, **__):
        raise OSError(EMFILE, os.strerror(EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        assert cgroups.path_of(inode) is None
    assert cgroups.path_of(inode) == f"/{made.name}"


def test_looking_for_cgroups_leaves_nothing_open(made):
    def look():
        cgroups._path_of.cache_clear()
        cgroups.path_of(made.stat().st_ino)
        return sorted(os.listdir("/proc/self/fd"))

    assert look() == look()
