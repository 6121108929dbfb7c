"""The command `portwatch who` on real sockets."""

import json
import os

import pytest
from port_commands import run

EVIL = "\x1b]0;owned\x07"


def answer(result):
    """Return stdout without the hint about listeners in other namespaces, which this machine may have."""
    hint = " in the selected scope, but a socket outside the scope does (try --netns all, or fewer options)"
    return result.stdout.removesuffix("\n").replace(hint, "")


def test_who_prints_every_holder_with_its_command_and_ancestry(actor, engine):
    actor.do("s = listener(port=8080); child = fork(lambda: None)")
    child = actor.do("child")
    result = run("who", actor, "8080", *engine)
    assert result.returncode == 0
    first, *rest = result.stdout.splitlines()
    assert first == "tcp 127.0.0.1:8080, loopback"
    holders = [line for line in rest if "held by" in line]
    assert [f"({pid})" in line for pid, line in zip((actor.pid, child), holders, strict=True)] == [True, True]
    assert sum("actor.py new" in line for line in rest) == 2
    assert any(line.endswith(f"({os.getpid()}) > {actor.process}({actor.pid})") for line in rest)
    assert any(line.endswith(f"{actor.process}({actor.pid}) > {actor.process}({child})") for line in rest)
    assert f"net:[{actor.netns}], not the one portwatch runs in" in result.stdout
    assert "before portwatch started" in result.stdout


def test_who_adds_command_and_ancestry_to_a_json_listener(actor, engine):
    actor.do("s = listener(port=8080)")
    result = run("who", actor, "tcp/8080", "--json", *engine)
    (listener,) = map(json.loads, result.stdout.splitlines())
    (holder,) = listener["holders"]
    for process in (listener, holder):
        assert process["pid"] == actor.pid
        assert process["command"][-1] == "new"
        assert process["ancestry"][-1] == {"pid": actor.pid, "process": actor.process}
        assert process["ancestry"][0]["pid"] == 1


USES = {
    "is bound to it": "s = bound(port=8080, kind=TCP)",
    "uses it for a connection": "t = listener(port=9090); s = bound(port=8080, kind=TCP); "
    "s.connect(('127.0.0.1', 9090))",
}


@pytest.mark.parametrize("use", USES)
def test_who_names_the_process_that_blocks_a_port_without_listening(actor, engine, use):
    actor.do(USES[use])
    if "poll" in engine and "bound" in use and os.uname().release.startswith(("5.", "6.1.")):
        pytest.skip("before Linux 6.8, sock_diag does not list sockets that are only bound")
    result = run("who", actor, "8080", *engine)
    assert result.returncode == 1
    assert answer(result) == f"nothing listens on port 8080; {actor.process} ({actor.pid}) {use}"
    result = run("who", actor, "8080", "--json", *engine)
    assert (result.returncode, result.stdout) == (1, "")


def test_who_reports_a_closed_connection_that_blocks_a_port(actor, engine):
    actor.do("s = listener(port=8080); c = socket.create_connection(('127.0.0.1', 8080)); a = s.accept()[0]")
    actor.do("s.close(); a.close(); c.close()")
    result = run("who", actor, "8080", *engine)
    assert answer(result) == (
        "nothing listens on port 8080; a closed connection holds it for up to a minute (TIME_WAIT)"
    )


def test_who_with_a_protocol_finds_only_sockets_of_that_protocol(actor):
    actor.do("u = bound(port=5300)")
    assert run("who", actor, "udp/5300").returncode == 0
    assert run("who", actor, "5300").returncode == 0
    assert answer(run("who", actor, "tcp/5300")) == "nothing listens on tcp/5300"


def test_control_characters_in_names_and_commands_are_escaped(actor):
    actor.do(f"open('/proc/self/comm', 'w').write({EVIL!r}); s = listener(port=8080)")
    evil = ["sh", "-c", "read x", EVIL]
    actor.do(f"p = subprocess.Popen({evil!r}, stdin=subprocess.PIPE, pass_fds=[s.fileno()])")
    for command, *options in (["who"], ["kill", "--dry-run"], ["kill"], ["kill", "--yes"]):
        result = run(command, actor, "8080", *options)
        assert r"\x1b]0;owned\x07 (" in result.stdout
        assert r"read x \x1b]0;owned\x07" in result.stdout
        assert all(line.isprintable() for line in (result.stdout + result.stderr).splitlines())
