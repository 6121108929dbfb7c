"""The names of network namespaces."""

import pytest

from portwatch.linux import netns
from portwatch.linux.mounts import Mount


@pytest.fixture
def mounted(monkeypatch):
    """Replace the mounted namespaces by a list that the test fills in. Every check reports changed mounts."""
    namespaces = []
    monkeypatch.setattr(netns, "_mounted", lambda: iter(namespaces))
    monkeypatch.setattr(netns._Names, "_have_mounts_changed", lambda _: True)
    return namespaces


@pytest.fixture
def names(mounted):  # noqa: ARG001  # _Names reads its list
    return netns._Names()


def mount(inode, point):
    return inode, Mount(f"net:[{inode}]", point, "nsfs")


def test_a_name_is_the_last_component_of_the_mount_point(mounted, names):
    mounted += [mount(7, "/run/docker/netns/1a2b3c"), mount(8, "/run/user/1000/netns/cni-1")]
    assert (names.of(7), names.of(8), names.of(9)) == ("1a2b3c", "cni-1", None)
    assert (names.inode("cni-1"), names.inode("nosuch")) == (8, None)


@pytest.mark.parametrize("folder", ["/run/netns", "/var/run/netns", "/host/proc/1/root/run/netns"])
def test_if_a_namespace_has_several_names_the_name_from_ip_netns_is_used(mounted, names, folder):
    mounted += [mount(7, "/run/docker/netns/x"), mount(7, f"{folder}/blue"), mount(7, "/mnt/y")]
    assert names.of(7) == "blue"


def test_a_name_is_none_if_mountinfo_is_not_readable(names, monkeypatch):
    def refuse():
        raise PermissionError

    monkeypatch.setattr(netns, "_mounted", refuse)
    assert names.of(7) is None


def test_an_unknown_namespace_is_looked_up_before_the_interval_has_passed(mounted, names):
    names._next_refresh = float("inf")
    mounted.append(mount(7, "/run/netns/blue"))
    assert names.of(7) == "blue"


def test_a_known_namespace_is_looked_up_again_only_after_the_interval(mounted, names):
    assert names.of(7) is None
    mounted.append(mount(7, "/run/netns/blue"))
    names._next_refresh = float("inf")
    assert names.of(7) is None
    names._next_refresh = 0.0
    assert names.of(7) == "blue"
