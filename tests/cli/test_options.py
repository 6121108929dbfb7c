"""What is typed, as a scope."""

import os

import click
import pytest
from click.testing import CliRunner

from portwatch.cli.options import scope_of, scope_options
from portwatch.filters.filter import Filter
from portwatch.filters.scope import Scope
from portwatch.linux import containers, netns, procfs

OURS = os.stat("/proc/self/ns/net").st_ino


@pytest.fixture(autouse=True)
def _a_machine_with_some_of_each(monkeypatch):
    monkeypatch.setattr(netns, "named", {"blue": 7, "red": 8}.get)
    monkeypatch.setattr(
        containers, "of_process", lambda pid: containers.CgroupInfo(None, "4f" * 32 if pid % 2 else "5a" * 32)
    )


def scope(*arguments, **environment):
    @click.command()
    @scope_options()
    def command(**options):
        made.append(scope_of(options))

    made = []
    result = CliRunner().invoke(command, arguments, env=environment)
    assert result.exit_code == 0, result.output
    return made[0]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("", Scope()),
        ("--port 80,8000-8999 --port 53", Scope(port=Filter(((80, 80), (8000, 8999), (53, 53))))),
        ("--not-proto udp --proto tcp,udp", Scope(proto=Filter(("tcp", "udp"), ("udp",)))),
        (
            "--exposure all --not-process n*,x",
            Scope(exposure=Filter(("all",)), process=Filter((), ("n*", "x"))),
        ),
        ("--netns self", Scope(netns=Filter((OURS,)))),
        ("--netns self,blue --netns red", Scope(netns=Filter((OURS, 7, 8)))),
        ("--netns /proc/self/ns/net --not-netns blue", Scope(netns=Filter((OURS,), (7,)))),
        ("--netns all", Scope()),
        ("--netns self,all", Scope()),
        ("--netns self --netns all --not-netns red", Scope(netns=Filter((), (8,)))),
        ("--container 4f", Scope(container=Filter(("4f" * 32,)))),
        ("--container 4f,5a --not-container 5", Scope(container=Filter(("4f" * 32, "5a" * 32), ("5a" * 32,)))),
    ],
)
def test_one_option_several_times_widens_and_a_not_takes_away(typed, meant):
    assert scope(*typed.split()) == meant


def test_a_procfs_is_in_use_before_the_other_options_are_looked_up(monkeypatch):
    used = []
    monkeypatch.setattr(procfs, "use", used.append)
    monkeypatch.setattr(procfs, "pids", lambda: [1] if used else [])
    assert scope("--container", "4f", "--procfs", "/host/proc").container.include == ("4f" * 32,)
    assert scope("--container", "4f", HOST_PROC="/other").container.include == ("4f" * 32,)
    assert scope("--procfs", "/host/proc", HOST_PROC="/other") == Scope()
    assert used == ["/host/proc", "/other", "/host/proc"]
