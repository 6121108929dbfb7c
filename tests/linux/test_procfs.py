"""Which procfs other processes are read from, and which are refused because they would name wrong ones."""

import os
import subprocess
import sys

import pytest

from portwatch import PortwatchError
from portwatch.linux import procfs

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: pid namespaces and mounts")


@pytest.fixture(autouse=True)
def _put_back():
    yield
    procfs.use(procfs.OURS)


@pytest.fixture
def foreign(tmp_path):
    """The procfs of a pid namespace in which we are not."""
    mount = 'mount -t proc proc "$0" && echo mounted && read end'
    process = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", mount, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"mounted\n"
    yield tmp_path
    process.communicate(b"\n")
    subprocess.run(["umount", tmp_path], check=True)


def test_our_own_is_taken():
    procfs.use("/proc/")
    assert procfs.root() == "/proc"
    assert os.getpid() in procfs.pids()


@pytest.mark.parametrize("path", ["/nosuch", "/etc", "/proc/self", "/proc/stat", ""])
def test_what_is_no_procfs_is_refused_with_what_to_mount(path):
    with pytest.raises(PortwatchError, match=r"is no procfs: .*-v /proc:/host/proc:ro"):
        procfs.use(path)
    assert procfs.root() == "/proc"


@needs_root
def test_that_of_another_pid_namespace_is_refused(foreign):
    with pytest.raises(PortwatchError, match="another pid namespace"):
        procfs.use(str(foreign))
    command = [sys.executable, "-m", "portwatch", "list"]
    for wrong in ([*command, "--procfs", foreign], ["env", f"HOST_PROC={foreign}", *command]):
        result = subprocess.run(wrong, capture_output=True, text=True, check=False)
        assert result.returncode == 2
        assert "another pid namespace, in which pids mean other processes" in result.stderr


@needs_root
@pytest.mark.parametrize(
    ("unshared", "has_them"),
    [(["--mount-proc"], False), ([], True)],
    ids=["a proc of its own", "the proc of the namespace around it"],
)
def test_in_a_pid_namespace_it_depends_on_the_procfs_whether_pids_are_the_kernels(unshared, has_them):
    script = "from portwatch.linux import procfs; print(procfs.shows_kernel_pids(), procfs.own_start() > 0)"
    command = ["unshare", "--pid", "--fork", "--kill-child", *unshared, sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    # In a container there may be no procfs that has them.
    assert result.stdout == f"{has_them and procfs.shows_kernel_pids()} True\n"
