"""What network namespaces are called."""

import pytest

from portwatch.linux import netns
from portwatch.linux.mounts import Mount


@pytest.fixture
def mounted(monkeypatch):
    """Namespaces that mounts keep, and a kernel that says each time that these have changed."""
    found = []
    monkeypatch.setattr(netns, "_mounted", lambda: iter(found))
    monkeypatch.setattr(netns._Names, "_has_changed", lambda _: True)
    return found


@pytest.fixture
def names(mounted):  # noqa: ARG001  # what it reads
    return netns._Names()


def kept(inode, point):
    return inode, Mount(f"net:[{inode}]", point, "nsfs")


def test_a_name_is_the_last_part_of_where_it_is_mounted(mounted, names):
    mounted += [kept(7, "/run/docker/netns/1a2b3c"), kept(8, "/run/user/1000/netns/cni-1")]
    assert (names.of(7), names.of(8), names.of(9)) == ("1a2b3c", "cni-1", None)
    assert (names.inode("cni-1"), names.inode("nosuch")) == (8, None)


@pytest.mark.parametrize("folder", ["/run/netns", "/var/run/netns", "/host/proc/1/root/run/netns"])
def test_the_name_of_ip_netns_comes_before_any_other(mounted, names, folder):
    mounted += [kept(7, "/run/docker/netns/x"), kept(7, f"{folder}/blue"), kept(7, "/mnt/y")]
    assert names.of(7) == "blue"


def test_names_that_are_not_ours_to_see_are_no_reason_to_see_nothing(names, monkeypatch):
    def refuse():
        raise PermissionError

    monkeypatch.setattr(netns, "_mounted", refuse)
    assert names.of(7) is None


def test_a_namespace_that_comes_up_is_asked_for_at_once(mounted, names):
    names._due = float("inf")
    mounted.append(kept(7, "/run/netns/blue"))
    assert names.of(7) == "blue"


def test_a_namespace_that_is_known_is_asked_for_again_after_a_while_and_not_each_time(mounted, names):
    assert names.of(7) is None
    mounted.append(kept(7, "/run/netns/blue"))
    names._due = float("inf")
    assert names.of(7) is None
    names._due = 0.0
    assert names.of(7) == "blue"
