"""Commands that lack privileges, mounts or kernel features use another engine, and say why."""

import os

import pytest
from commands import one_line, run
from privileges import (
    NO_CAPABILITIES,
    NOBODY,
    in_private_mounts,
    needs_core,
    needs_nobody,
    needs_object,
    needs_root,
)

from portwatch.linux.capabilities import MEMLOCK_UNUSED_SINCE
from portwatch.linux.kernel import RELEASE

RUN_AS_ROOT = "run portwatch as root (sudo portwatch)"
NO_BTF = in_private_mounts("mount -t tmpfs none /sys/kernel/btf")
HIDEPID = in_private_mounts("mount -t proc -o hidepid=2 proc /proc")


def without(*capabilities):
    return ["setpriv", f"--bounding-set={','.join(f'-{name}' for name in capabilities)}"]


@needs_root
@needs_object
@pytest.mark.parametrize(
    ("prefix", "reason"),
    [
        (NO_CAPABILITIES, f"missing CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN; {RUN_AS_ROOT}"),
        (without("sys_admin", "bpf"), f"missing CAP_BPF; {RUN_AS_ROOT}"),
        (without("sys_admin", "perfmon"), f"missing CAP_PERFMON; {RUN_AS_ROOT}"),
        (without("sys_admin", "net_admin"), f"missing CAP_NET_ADMIN; {RUN_AS_ROOT}"),
        (NO_BTF, "this kernel has no BTF (/sys/kernel/btf/vmlinux is missing)"),
    ],
    ids=["no capabilities", "no CAP_BPF", "no CAP_PERFMON", "no CAP_NET_ADMIN", "no BTF"],
)
def test_if_core_cannot_run_it_says_why_and_auto_falls_back_to_poll(prefix, reason, listening_port):
    forced = run("tail", "--engine", "core", prefix=prefix)
    assert forced.returncode == 3
    assert reason in one_line(forced.stderr)
    assert not forced.stdout

    fallen_back = run("list", "--netns", "self", "--port", str(listening_port), prefix=prefix)
    assert fallen_back.returncode == 0
    if "missing CAP_NET_ADMIN" not in reason:  # core can take snapshots without CAP_NET_ADMIN
        assert reason.partition(";")[0] in one_line(fallen_back.stderr)
        assert fallen_back.stderr.startswith("portwatch: using the engine poll: core cannot run here (")
    assert f"127.0.0.1:{listening_port}" in fallen_back.stdout

    examined = run("doctor", prefix=prefix)
    assert examined.returncode == 0
    assert reason in examined.stdout
    assert "auto selects poll: core cannot run here" in examined.stdout


@needs_nobody
@pytest.mark.parametrize("command", ["list", "doctor"])
def test_a_user_without_privileges_gets_poll(command):
    result = run(command, prefix=NOBODY)
    assert result.returncode == 0
    assert "poll" in (result.stderr if command == "list" else result.stdout)


@needs_nobody
def test_with_hidepid_ports_of_other_users_have_no_owner(listening_port):
    prefix = [*HIDEPID, *NOBODY]
    result = run("list", "--netns", "self", "--port", str(listening_port), prefix=prefix)
    assert result.returncode == 0
    assert "no process" in result.stdout.splitlines()[1]
    assert "hidepid=" in run("doctor", prefix=prefix).stdout


@needs_core
def test_hidepid_does_not_hide_owners_from_root(listening_port):
    result = run("list", "--engine", "core", "--port", str(listening_port), prefix=HIDEPID)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"({os.getpid()})" in result.stdout


@needs_core
def test_core_works_with_a_memlock_limit_of_0(listening_port):
    result = run("list", "--engine", "core", "--port", str(listening_port), prefix=["prlimit", "--memlock=0"])
    assert (result.returncode, result.stderr) == (0, "")
    assert f"127.0.0.1:{listening_port}" in result.stdout


@needs_core
def test_a_memlock_limit_that_cannot_be_raised_matters_on_old_kernels_only():
    prefix = [*without("sys_resource"), "prlimit", "--memlock=65536"]
    result = run("list", "--engine", "core", prefix=prefix)
    if RELEASE < MEMLOCK_UNUSED_SINCE:
        assert result.returncode == 3
        assert "RLIMIT_MEMLOCK, which is 64 KiB and cannot be raised" in one_line(result.stderr)
    else:
        assert (result.returncode, result.stderr) == (0, "")


@needs_root
@pytest.mark.parametrize("command", ["tail", "list", "doctor"])
def test_without_proc_no_engine_works(command):
    result = run(command, prefix=in_private_mounts("umount -l /proc"))
    assert result.returncode == (1 if command == "doctor" else 3)
    output = result.stdout if command == "doctor" else one_line(result.stderr)
    assert "no engine works here" in output
    assert "/proc/self" in output
