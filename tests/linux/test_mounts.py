"""Parsing of mountinfo."""

from portwatch.linux.mounts import Mount, mounts


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
