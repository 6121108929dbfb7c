"""Choosing the procfs that other processes are read from, and reading it."""

import os
import subprocess
import sys

import pytest

from portwatch import PortwatchError
from portwatch.linux import clock, procfs

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: pid namespaces and mounts")


@pytest.fixture(autouse=True)
def _restore_root():
    yield
    procfs.use(procfs.OWN_ROOT)


@pytest.fixture
def foreign_procfs(tmp_path):
    """The path of a procfs of a pid namespace that this process is not in."""
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


def test_use_accepts_the_proc_directory():
    procfs.use("/proc/")
    assert procfs.root() == "/proc"
    assert os.getpid() in procfs.pids()


def test_stat_of_this_process_has_its_parent_and_start_time():
    _, parent, start = procfs.stat(os.getpid())
    assert parent == os.getppid()
    assert clock.boot_time() < start == procfs.own_start()


@pytest.mark.parametrize("path", ["/nosuch", "/etc", "/proc/self", "/proc/stat", ""])
def test_use_refuses_a_path_that_is_not_a_procfs_and_says_what_to_mount(path):
    with pytest.raises(PortwatchError, match=r"is not a procfs: .*-v /proc:/host/proc:ro"):
        procfs.use(path)
    assert procfs.root() == "/proc"


@needs_root
def test_use_and_the_command_line_refuse_the_procfs_of_another_pid_namespace(foreign_procfs):
    with pytest.raises(PortwatchError, match="another pid namespace"):
        procfs.use(str(foreign_procfs))
    command = [sys.executable, "-m", "portwatch", "list"]
    for arguments in ([*command, "--procfs", foreign_procfs], ["env", f"HOST_PROC={foreign_procfs}", *command]):
        result = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert result.returncode == 2
        assert "another pid namespace, where the same pids are other processes" in result.stderr


@needs_root
@pytest.mark.parametrize(
    ("options", "has_kernel_pids"),
    [(["--mount-proc"], False), ([], True)],
    ids=["its own procfs", "the procfs of the outer namespace"],
)
def test_in_a_pid_namespace_only_the_procfs_of_the_outer_namespace_shows_kernel_pids(options, has_kernel_pids):
    script = "from portwatch.linux import procfs; print(procfs.shows_kernel_pids(), procfs.own_start() > 0)"
    command = ["unshare", "--pid", "--fork", "--kill-child", *options, sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    # If the tests run in a container, even the outer procfs may not show the kernel's pids.
    assert result.stdout == f"{has_kernel_pids and procfs.shows_kernel_pids()} True\n"
