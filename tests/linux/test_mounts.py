"""Reading mountinfo, and opening the cgroup v2 root."""

import os

import pytest

from portwatch.errors import EngineUnavailable
from portwatch.linux import mounts as mounts_module
from portwatch.linux.mounts import Mount, mounts, open_cgroup_root


def test_octal_escapes_are_decoded_and_all_other_characters_kept(tmp_path):
    lines = (
        "36 35 0:4 net:[4026532281] /run/netns/café rw shared:7 - nsfs nsfs rw\n"
        r"37 35 0:25 / /mnt/a\040b\134040\012c rw - proc proc rw,hidepid=invisible" + "\n"
        "38 35 0:26 / /mnt/no-break\u00a0space\r rw,relatime shared:8 master:1 - tmpfs none rw,size=1k\n"
    )
    (tmp_path / "mountinfo").write_bytes(lines.encode())
    assert list(mounts(str(tmp_path / "mountinfo"))) == [
        Mount("net:[4026532281]", "/run/netns/café", "nsfs", "rw"),
        Mount("/", "/mnt/a b\\040\nc", "proc", "rw,hidepid=invisible"),
        Mount("/", "/mnt/no-break\u00a0space\r", "tmpfs", "rw,size=1k"),
    ]


@pytest.mark.parametrize("exists", [False, True], ids=["no cgroup v2", "private cgroup namespace"])
def test_open_cgroup_root_says_why_it_cannot_open_the_root(exists, monkeypatch, tmp_path):
    directories = [tmp_path] if exists else []
    monkeypatch.setattr(
        mounts_module, "_cgroup_directories", lambda: (os.open(path, os.O_RDONLY) for path in directories)
    )
    with pytest.raises(EngineUnavailable, match="--cgroupns=host" if exists else "no cgroup v2"):
        open_cgroup_root()
