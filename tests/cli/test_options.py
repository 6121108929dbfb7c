"""Scope options on the command line become a Scope."""

import os

import click
import pytest
from click.testing import CliRunner

from portwatch.cli.options import pop_scope, scope_options
from portwatch.filters.filter import Filter
from portwatch.filters.scope import Scope
from portwatch.linux import containers, netns, procfs

OURS = os.stat("/proc/self/ns/net").st_ino


@pytest.fixture(autouse=True)
def _named_namespaces_and_containers(monkeypatch):
    monkeypatch.setattr(netns, "named", {"blue": 7, "red": 8}.get)
    monkeypatch.setattr(
        containers, "of_process", lambda pid: containers.CgroupInfo(None, "4f" * 32 if pid % 2 else "5a" * 32)
    )


def scope(*arguments, **environment):
    @click.command()
    @scope_options()
    def command(**options):
        scopes.append(pop_scope(options))

    scopes = []
    result = CliRunner().invoke(command, arguments, env=environment)
    assert result.exit_code == 0, result.output
    return scopes[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
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
def test_scope_options_become_a_scope_with_includes_and_excludes(arguments, expected):
    assert scope(*arguments.split()) == expected


def test_procfs_is_set_before_other_options_look_up_their_values(monkeypatch):
    used = []
    monkeypatch.setattr(procfs, "use", used.append)
    monkeypatch.setattr(procfs, "pids", lambda: [1] if used else [])
    assert scope("--container", "4f", "--procfs", "/host/proc").container.include == ("4f" * 32,)
    assert scope("--container", "4f", HOST_PROC="/other").container.include == ("4f" * 32,)
    assert scope("--procfs", "/host/proc", HOST_PROC="/other") == Scope()
    assert used == ["/host/proc", "/other", "/host/proc"]
