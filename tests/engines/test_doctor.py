"""What doctor finds out about the machine and about each engine, and how it prints that."""

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
    info = EngineInfo("fake", "fake hooks", (Limit("a_limit", "some ports are not seen"),))

    def __init__(self):
        self.calls = []

    def attach(self):
        self.calls.append("attach")

    def detach(self):
        self.calls.append("detach")


def refuse(_options):
    raise EngineUnavailable("no BTF; boot another kernel")


@pytest.fixture
def engines(monkeypatch):
    """Make core refuse, remove bcc, and replace poll with a fake engine. Return the fake engine."""
    fake = FakeEngine()
    engines = {"core": refuse, "poll": lambda _options: fake}
    for module in (doctor, choice):
        monkeypatch.setattr(module, "ENGINES", engines)
    return fake


def run(*arguments):
    return CliRunner().invoke(command, arguments)


def fact(report, name):
    return next(fact for fact in report.facts if fact.name == name)


def test_every_fact_has_a_state_and_a_text():
    report = doctor.examine()
    assert [fact.name for fact in report.facts] == FACTS
    for found in report.facts:
        assert found.state in ("ok", "limited", "not ok")
        assert found.text


def test_an_engine_that_doctor_attaches_is_detached_again(engines):
    doctor.examine()
    assert engines.calls == ["attach", "detach"]


@pytest.mark.usefixtures("engines")
def test_auto_selects_the_first_engine_that_works_and_says_why_better_engines_do_not():
    report = doctor.examine()
    assert report.taken.engine == "poll"
    assert report.why == "core cannot run here (no BTF; boot another kernel)"


@pytest.mark.usefixtures("engines")
def test_the_exit_code_is_1_if_no_engine_works(monkeypatch):
    assert run().exit_code == 0
    monkeypatch.setitem(doctor.ENGINES, "poll", refuse)
    result = run()
    assert result.exit_code == 1
    assert "no engine works here: core cannot run here" in result.stdout


def test_if_an_engine_is_requested_no_other_engine_is_tried(engines):
    result = run("--engine", "poll")
    assert engines.calls == ["attach", "detach"]
    assert result.stdout.splitlines()[-1] == "poll is used: it was requested and works"
    assert result.exit_code == 0
    result = run("--engine", "core")
    assert engines.calls == ["attach", "detach"]
    assert result.stdout.splitlines()[-1].startswith("core does not work here: core cannot run here")
    assert result.exit_code == 1


@pytest.mark.usefixtures("engines")
def test_json_is_one_object_with_everything_that_the_text_shows():
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
            "refusal": "no BTF; boot another kernel",
            "hooks": None,
            "why": None,
            "limits": [],
        },
        {
            "engine": "poll",
            "works": True,
            "refusal": None,
            "hooks": "fake hooks",
            "why": None,
            "limits": [{"name": "a_limit", "text": "some ports are not seen"}],
        },
    ]


@pytest.mark.usefixtures("engines")
def test_if_stdout_is_not_a_terminal_the_text_is_aligned_and_has_no_colours():
    lines = run().stdout.splitlines()
    assert not any("\x1b" in line for line in lines)
    assert "             " + "        " + "limit: some ports are not seen" in lines
    assert "poll         ok      works, with hooks: fake hooks" in lines


def test_if_a_check_raises_the_state_of_its_fact_is_not_ok(monkeypatch):
    def fail():
        raise PermissionError(13, "Permission denied", "/proc/self/status")

    monkeypatch.setattr(capabilities, "effective", fail)
    assert fact(doctor.examine(), "capabilities").state == "not ok"


def test_without_btf_core_cannot_run_and_the_help_names_packages(monkeypatch, tmp_path):
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
def test_lockdown_is_not_ok_in_confidentiality_mode_and_limited_if_unknown(mode, state, monkeypatch):
    monkeypatch.setattr(kernel, "lockdown", lambda: mode)
    found = fact(doctor.examine(), "lockdown")
    assert found.state == state
    assert (mode or "unknown") in found.text


def test_only_missing_capabilities_are_listed(monkeypatch):
    monkeypatch.setattr(capabilities, "effective", lambda: 1 << capabilities.BPF.bit)
    found = fact(doctor.examine(), "capabilities")
    assert found.state == "not ok"
    assert "CAP_BPF" not in found.text
    assert "CAP_PERFMON is missing" in found.text
    assert "run portwatch as root" in found.help


def test_sys_admin_implies_the_capabilities_that_were_split_from_it(monkeypatch):
    monkeypatch.setattr(capabilities, "effective", lambda: 1 << capabilities.SYS_ADMIN.bit)
    effective = doctor.examine().capabilities
    assert effective["CAP_BPF"]
    assert effective["CAP_NET_ADMIN"]
    assert not effective["CAP_SYS_PTRACE"]


def test_memlock_is_limited_before_5_11_and_ok_from_5_11_on(monkeypatch):
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (65_536, 65_536))
    monkeypatch.setattr(capabilities, "effective", lambda: 0)
    for module in (kernel, capabilities):
        monkeypatch.setattr(module, "RELEASE", (5, 10))
    assert fact(doctor.examine(), "memlock").state == "limited"
    for module in (kernel, capabilities):
        monkeypatch.setattr(module, "RELEASE", (5, 11))
    assert fact(doctor.examine(), "memlock").state == "ok"


def test_if_proc_belongs_to_another_pid_namespace_the_help_says_what_to_mount(monkeypatch):
    monkeypatch.setattr(procfs, "shows_kernel_pids", lambda: False)
    found = fact(doctor.examine(), "proc")
    assert found.state == "limited"
    assert "its pids differ from those of BPF programs" in found.text
    assert "-v /proc:/host/proc:ro -e HOST_PROC=/host/proc" in found.help


def test_if_libbpf_is_missing_the_text_of_its_fact_is_the_error(monkeypatch):
    def missing():
        raise EngineUnavailable("libbpf 1.0 or later is required")

    monkeypatch.setattr(diagnosis, "Libbpf", missing)
    assert fact(doctor.examine(), "libbpf").text == "libbpf 1.0 or later is required"
