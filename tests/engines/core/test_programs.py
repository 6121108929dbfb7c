"""Attaching core's programs if the kernel or another tool refuses something."""

import errno
import sys
import textwrap
from contextlib import contextmanager
from subprocess import PIPE, Popen

import pytest
from commands import one_line
from privileges import needs_core
from support import open_files

from portwatch.engines import perf
from portwatch.engines.choice import choose
from portwatch.engines.core import libbpf
from portwatch.engines.core.engine import CoreEngine
from portwatch.engines.core.programs import Programs
from portwatch.engines.limits import FAILURES
from portwatch.engines.protocol import Options
from portwatch.errors import EngineUnavailable, NotPermitted
from portwatch.linux import mounts

pytestmark = needs_core


def attach(engine):
    engine.attach()


@pytest.mark.parametrize(
    ("module", "name"), [(perf, "open_tracepoint"), (mounts, "open_file_system")], ids=["perf event", "tracefs"]
)
def test_if_tracepoints_cannot_be_opened_info_has_the_limit_failures_and_no_descriptor_leaks(
    module, name, monkeypatch
):
    def deny(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(module, name, deny)
    before = open_files()
    choice = choose("core", Options(), prove=attach)
    assert FAILURES in choice.engine.info.limits
    choice.engine.detach()
    assert open_files() <= before


TAIL_WITHOUT_TRACEFS = """
    import sys
    from portwatch.cli import main as cli
    from portwatch.linux import mounts

    def deny(*_):
        raise PermissionError(13, "Permission denied")

    mounts.open_file_system = deny
    sys.argv[1:] = ["tail", "--engine", "core", "--hooks", "stable", *sys.argv[1:]]
    cli.main()
"""


@contextmanager
def terminated_tail(port, *options):
    """Start `portwatch tail`, and terminate it after it has printed its first line."""
    command = [sys.executable, "-c", textwrap.dedent(TAIL_WITHOUT_TRACEFS), *options, "--port", str(port)]
    with Popen(command, stdout=PIPE, stderr=PIPE, text=True) as tail:
        assert tail.stdout.readline()
        tail.terminate()
        yield tail


def test_tail_says_that_it_cannot_report_failures_only_if_they_are_requested(listening_port):
    with terminated_tail(listening_port) as tail:
        assert "failed binds and listens are not reported" in one_line(tail.communicate()[1])
    with terminated_tail(listening_port, "--no-failures") as tail:
        assert tail.communicate()[1] == ""


def test_if_fentry_is_refused_the_stable_hooks_are_used_and_info_says_why(monkeypatch):
    attach_hooks = Programs.attach

    def refuse_fentry(self, hooks):
        if hooks.name == "fentry":
            raise NotPermitted("fentry is forbidden here")
        return attach_hooks(self, hooks)

    monkeypatch.setattr(Programs, "attach", refuse_fentry)
    engine = CoreEngine()
    engine.attach()
    info = engine.info
    engine.detach()
    assert (info.hooks, info.why) == ("stable", "fentry: fentry is forbidden here")
    for name in ("core", "auto"):
        with pytest.raises(NotPermitted):
            choose(name, Options(hooks="fentry"), attach)


def test_an_engine_can_take_snapshots_before_and_after_attach(listening_port):
    engine = CoreEngine()
    try:
        engine.snapshot()
        engine.attach()
        assert listening_port in {one.socket.port for one in engine.snapshot().sockets}
    finally:
        engine.detach()


def test_a_failed_attach_leaves_no_descriptor_open(monkeypatch):
    def fail(_self, name, **_):
        raise EngineUnavailable(f"cannot attach {name}")

    monkeypatch.setattr(libbpf.Object, "attach", fail)
    before = open_files()
    with pytest.raises(EngineUnavailable):
        choose("core", Options(), prove=attach)
    assert open_files() <= before


def test_if_another_tool_holds_the_root_cgroup_the_error_says_so(monkeypatch):
    def fail(_self, name, cgroup_fd=None, **_):
        if cgroup_fd is not None:
            raise NotPermitted(f"cannot attach {name}")

    monkeypatch.setattr(libbpf.Object, "attach", fail)
    with pytest.raises(NotPermitted, match="another tool holds the root cgroup"):
        choose("core", Options(hooks="stable"), prove=attach)
