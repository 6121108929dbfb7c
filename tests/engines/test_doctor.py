import json

import pytest
from click.testing import CliRunner

from portwatch.cli.commands.doctor import command
from portwatch.engines import choice, doctor, machine
from portwatch.engines.core import diagnosis
from portwatch.engines.core import engine as core
from portwatch.engines.limits import EngineInfo, Limit
from portwatch.errors import EngineUnavailable
from portwatch.linux import capabilities, kernel, procfs

FACTS = [
    "kernel",
    "btf",
    "lockdown",
    "capabilities",
    "memlock",
    "cgroup v2",
    "tracefs",
    "namespaces",
    "proc",
    "libbpf",
    "bpf object",
    "bcc",
    "sock_diag",
]


class FakeEngine:
    info = EngineInfo("fake", "hooks of its own", (Limit("moon", "the far side is not seen"),))

    def __init__(self):
        self.calls = []

    def attach(self):
        self.calls.append("attach")

    def detach(self):
        self.calls.append("detach")


def refuse(_options):
    raise EngineUnavailable("the stars are wrong; wait")


@pytest.fixture
def engines(monkeypatch):
    """core refuses and poll is a fake, and there is no third."""
    fake = FakeEngine()
    made = {"core": refuse, "poll": lambda _options: fake}
    for module in (doctor, choice):
        monkeypatch.setattr(module, "ENGINES", made)
    return fake


def run(*arguments):
    return CliRunner().invoke(command, arguments)


def fact(report, name):
    return next(fact for fact in report.facts if fact.name == name)


def test_every_fact_has_a_state_and_a_sentence():
    report = doctor.examine()
    assert [fact.name for fact in report.facts] == FACTS
    for one in report.facts:
        assert one.state in ("ok", "limited", "not ok")
        assert one.text


def test_an_engine_is_really_attached_and_taken_out_again(engines):
    doctor.examine()
    assert engines.calls == ["attach", "detach"]


@pytest.mark.usefixtures("engines")
def test_auto_takes_the_first_that_works_and_says_why_not_the_better_one():
    report = doctor.examine()
    assert report.taken.engine == "poll"
    assert report.why == "core cannot run here (the stars are wrong; wait)"


@pytest.mark.usefixtures("engines")
def test_exits_with_1_if_no_engine_works(monkeypatch):
    assert run().exit_code == 0
    monkeypatch.setitem(doctor.ENGINES, "poll", refuse)
    result = run()
    assert result.exit_code == 1
    assert "no engine works here: core cannot run here" in result.stdout


def test_one_engine_alone_is_tried_if_it_is_asked_for(engines):
    result = run("--engine", "poll")
    assert engines.calls == ["attach", "detach"]
    assert result.stdout.splitlines()[-1] == "poll is taken: it is what was asked for, and works"
    assert result.exit_code == 0
    result = run("--engine", "core")
    assert engines.calls == ["attach", "detach"]
    assert result.stdout.splitlines()[-1].startswith("core does not work here: core cannot run here")
    assert result.exit_code == 1


@pytest.mark.usefixtures("engines")
def test_json_is_one_object_with_all_that_the_text_says():
    result = run("--json")
    assert result.stdout.count("\n") == 1
    report = json.loads(result.stdout)
    assert report["engine"] == "poll"
    assert [fact["name"] for fact in report["facts"]] == FACTS
    assert all(set(fact) == {"name", "state", "text", "help"} for fact in report["facts"])
    assert set(report["capabilities"]) >= {"CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN", "CAP_SYS_ADMIN"}
    assert report["engines"] == [
        {
            "engine": "core",
            "works": False,
            "refusal": "the stars are wrong; wait",
            "hooks": None,
            "why": None,
            "limits": [],
        },
        {
            "engine": "poll",
            "works": True,
            "refusal": None,
            "hooks": "hooks of its own",
            "why": None,
            "limits": [{"name": "moon", "text": "the far side is not seen"}],
        },
    ]


@pytest.mark.usefixtures("engines")
def test_text_is_aligned_and_plain_where_no_terminal_is():
    lines = run().stdout.splitlines()
    assert not any("\x1b" in line for line in lines)
    assert "             " + "        " + "limit: the far side is not seen" in lines
    assert "poll         ok      works, with hooks: hooks of its own" in lines


def test_a_check_that_fails_is_a_fact_and_not_the_end(monkeypatch):
    def fail():
        raise PermissionError(13, "Permission denied", "/proc/self/status")

    monkeypatch.setattr(capabilities, "effective", fail)
    assert fact(doctor.examine(), "capabilities").state == "not ok"


def test_no_btf(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "VMLINUX", tmp_path / "vmlinux")
    monkeypatch.setattr(core, "VMLINUX", tmp_path / "vmlinux")
    report = doctor.examine()
    found = fact(report, "btf")
    assert found.state == "limited"
    assert "python3-bpfcc linux-headers-" in found.help
    assert "CONFIG_DEBUG_INFO_BTF" in found.help
    assert not report.trials[0].works
    assert "has no BTF" in report.trials[0].refusal


@pytest.mark.parametrize(
    ("mode", "state"),
    [("none", "ok"), ("integrity", "ok"), ("confidentiality", "not ok"), (None, "limited")],
)
def test_lockdown_is_told_apart_by_its_mode(mode, state, monkeypatch):
    monkeypatch.setattr(kernel, "lockdown", lambda: mode)
    found = fact(doctor.examine(), "lockdown")
    assert found.state == state
    assert (mode or "not known") in found.text


def test_missing_capabilities_are_named_with_what_they_are_for(monkeypatch):
    monkeypatch.setattr(capabilities, "effective", lambda: 1 << capabilities.BPF.bit)
    found = fact(doctor.examine(), "capabilities")
    assert found.state == "not ok"
    assert "CAP_BPF" not in found.text
    assert "CAP_PERFMON is missing" in found.text
    assert "run it as root" in found.help


def test_sys_admin_stands_for_the_capabilities_that_came_later(monkeypatch):
    monkeypatch.setattr(capabilities, "effective", lambda: 1 << capabilities.SYS_ADMIN.bit)
    held = doctor.examine().capabilities
    assert held["CAP_BPF"]
    assert held["CAP_NET_ADMIN"]
    assert not held["CAP_SYS_PTRACE"]


def test_memlock_matters_before_5_11_only(monkeypatch):
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (65_536, 65_536))
    monkeypatch.setattr(capabilities, "effective", lambda: 0)
    for module in (kernel, capabilities):
        monkeypatch.setattr(module, "RELEASE", (5, 10))
    assert fact(doctor.examine(), "memlock").state == "limited"
    for module in (kernel, capabilities):
        monkeypatch.setattr(module, "RELEASE", (5, 11))
    assert fact(doctor.examine(), "memlock").state == "ok"


def test_a_procfs_whose_pids_are_not_the_kernels_is_said_with_what_to_mount(monkeypatch):
    monkeypatch.setattr(procfs, "shows_kernel_pids", lambda: False)
    found = fact(doctor.examine(), "proc")
    assert found.state == "limited"
    assert "has other pids than BPF tells" in found.text
    assert "-v /proc:/host/proc:ro -e HOST_PROC=/host/proc" in found.help


def test_what_cannot_be_read_is_no_traceback(monkeypatch):
    def missing():
        raise EngineUnavailable("libbpf 1.0 or later is needed; install it")

    monkeypatch.setattr(diagnosis, "Libbpf", missing)
    assert fact(doctor.examine(), "libbpf").text == "libbpf 1.0 or later is needed; install it"
