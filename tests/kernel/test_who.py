"""portwatch who, on real sockets of other processes."""

import json
import os

import pytest
from port_commands import run

EVIL = "\x1b]0;owned\x07"


def answer(result):
    """What is said of the actor's namespace, whatever goes on in others of this machine."""
    return result.stdout.removesuffix("\n").partition("; outside of what was asked for")[0]


def test_who_names_every_holder_and_where_they_come_from(actor, engine):
    actor.do("s = listener(port=8080); child = fork(lambda: None)")
    child = actor.do("child")
    result = run("who", actor, "8080", *engine)
    assert result.returncode == 0
    first, *rest = result.stdout.splitlines()
    assert first == "tcp 127.0.0.1:8080, loopback"
    held = [line for line in rest if "held by" in line]
    assert [f"({pid})" in line for pid, line in zip((actor.pid, child), held, strict=True)] == [True, True]
    assert sum("actor.py new" in line for line in rest) == 2
    assert any(line.endswith(f"({os.getpid()}) > {actor.process}({actor.pid})") for line in rest)
    assert any(line.endswith(f"{actor.process}({actor.pid}) > {actor.process}({child})") for line in rest)
    assert f"net:[{actor.netns}], which is not our own" in result.stdout
    assert "before portwatch looked" in result.stdout


def test_who_as_json_is_a_listener_with_its_background(actor, engine):
    actor.do("s = listener(port=8080)")
    result = run("who", actor, "tcp/8080", "--json", *engine)
    (listener,) = map(json.loads, result.stdout.splitlines())
    (holder,) = listener["holders"]
    for one in (listener, holder):
        assert one["pid"] == actor.pid
        assert one["command"][-1] == "new"
        assert one["ancestry"][-1] == {"pid": actor.pid, "process": actor.process}
        assert one["ancestry"][0]["pid"] == 1


WAYS = {
    "has bound it": "s = bound(port=8080, kind=TCP)",
    "is connected from it": "t = listener(port=9090); s = bound(port=8080, kind=TCP); "
    "s.connect(('127.0.0.1', 9090))",
}


@pytest.mark.parametrize("way", WAYS)
def test_where_nobody_listens_who_says_who_is_in_the_way(actor, engine, way):
    actor.do(WAYS[way])
    if "poll" in engine and "bound" in way and os.uname().release.startswith(("5.", "6.1.")):
        pytest.skip("sock_diag tells of sockets that are bound and no more from Linux 6.8 on")
    result = run("who", actor, "8080", *engine)
    assert result.returncode == 1
    assert answer(result) == f"nobody listens on port 8080; {actor.process} ({actor.pid}) {way}"
    result = run("who", actor, "8080", "--json", *engine)
    assert (result.returncode, result.stdout) == (1, "")


def test_a_connection_that_is_over_is_in_the_way_for_a_while(actor, engine):
    actor.do("s = listener(port=8080); c = socket.create_connection(('127.0.0.1', 8080)); a = s.accept()[0]")
    actor.do("s.close(); a.close(); c.close()")
    result = run("who", actor, "8080", *engine)
    assert answer(result) == (
        "nobody listens on port 8080; a closed connection keeps it for a minute (TIME_WAIT)"
    )


def test_a_port_and_its_protocol_are_not_another_protocols(actor):
    actor.do("u = bound(port=5300)")
    assert run("who", actor, "udp/5300").returncode == 0
    assert run("who", actor, "5300").returncode == 0
    assert answer(run("who", actor, "tcp/5300")) == "nobody listens on tcp/5300"


def test_neither_a_name_nor_a_command_line_can_write_to_the_terminal(actor):
    actor.do(f"open('/proc/self/comm', 'w').write({EVIL!r}); s = listener(port=8080)")
    evil = ["sh", "-c", "read x", EVIL]
    actor.do(f"p = subprocess.Popen({evil!r}, stdin=subprocess.PIPE, pass_fds=[s.fileno()])")
    for command, *options in (["who"], ["kill", "--dry-run"], ["kill"], ["kill", "--yes"]):
        result = run(command, actor, "8080", *options)
        assert r"\x1b]0;owned\x07 (" in result.stdout
        assert r"read x \x1b]0;owned\x07" in result.stdout
        assert all(line.isprintable() for line in (result.stdout + result.stderr).splitlines())
