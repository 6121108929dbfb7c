"""portwatch kill, on real sockets of other processes."""

import errno
import os
import pty
import signal
import subprocess
import sys

import pytest
from port_commands import PORTWATCH, invoke, poll_often, reap_in_the_background, run
from support import PATIENCE

from portwatch.cli.commands import kill
from portwatch.model import Process


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_kill_ends_every_holder_and_says_that_the_port_is_free(actor, engine):
    reap_in_the_background(actor)
    actor.do("s = listener(port=8080); children = [fork(lambda: None) for _ in range(3)]; s.close()")
    children = actor.do("children")
    result = run("kill", actor, "8080", "--yes", *engine)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "port 8080 is free"
    assert all(f"({child})" in result.stdout for child in children)
    assert not any(map(is_alive, children))
    assert is_alive(actor.pid)


def test_kill_shows_whom_and_signals_nobody_in_a_dry_run(actor):
    actor.do("s = listener(port=8080)")
    result = run("kill", actor, "8080", "--dry-run")
    assert result.returncode == 0
    assert result.stdout.splitlines()[0] == "tcp 127.0.0.1:8080, loopback"
    assert f"{actor.process} ({actor.pid}), root: " in result.stdout
    assert is_alive(actor.pid)


def test_kill_without_a_terminal_wants_yes(actor):
    actor.do("s = listener(port=8080)")
    result = run("kill", actor, "8080")
    assert result.returncode == 2
    assert f"({actor.pid})" in result.stdout
    assert "pass --yes" in result.stderr
    assert is_alive(actor.pid)


@pytest.mark.parametrize(("answer", "code"), [(b"n\n", 1), (b"\n", 1), (b"y\n", 0)])
def test_kill_asks_on_a_terminal(actor, answer, code):
    reap_in_the_background(actor)
    actor.do("s = listener(port=8080); child = fork(lambda: None); s.close()")
    child = actor.do("child")
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer)
        result = subprocess.run(
            [*PORTWATCH, "kill", "--netns", actor.namespace, "8080"],
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert result.returncode == code
    assert f"Send SIGTERM to {actor.process} ({child})? [y/N]" in result.stderr
    assert is_alive(child) == bool(code)


def test_who_ignores_the_signal_is_still_there_and_kill_says_what_helps(actor, engine, monkeypatch):
    reap_in_the_background(actor)
    monkeypatch.setattr(kill, "_PATIENCE", 0.2)
    actor.do("signal.signal(signal.SIGTERM, signal.SIG_IGN); s = listener(port=8080)")
    actor.do("child = fork(lambda: None); s.close()")
    child = actor.do("child")
    result = invoke("kill", actor, "8080", "--yes", *engine)
    assert result.exit_code == 1
    assert f"still held after 0.2 s, by {actor.process} ({child}); --signal KILL" in str(result.exception)
    assert is_alive(child)
    assert run("kill", actor, "8080", "--yes", "--signal", "kill", *engine).returncode == 0
    assert not is_alive(child)


def at_the_question(monkeypatch, happens):
    """Something happens while a person thinks, who then agrees."""

    def agree(*_):
        happens()
        return True

    monkeypatch.setattr(kill, "_is_agreed", agree)


def test_kill_signals_nobody_when_the_port_has_changed_hands(actor, make_actor, monkeypatch, engine):
    actor.do("s = listener(port=8080)")
    successor = make_actor(actor.namespace)

    def change_hands():
        actor.do("s.close()")
        successor.do("s = listener(port=8080)")

    at_the_question(monkeypatch, change_hands)
    result = invoke("kill", actor, "8080", *engine)
    assert result.exit_code == 1
    assert f"{actor.process} ({actor.pid}) has ended, or does not hold the port any more" in str(
        result.exception
    )
    assert "nobody was signalled" in str(result.exception)
    assert is_alive(actor.pid)
    assert is_alive(successor.pid)


def test_kill_signals_nobody_when_one_of_several_has_let_go(actor, monkeypatch):
    actor.do("s = listener(port=8080); child = fork(lambda: None)")
    child = actor.do("child")
    at_the_question(monkeypatch, lambda: actor.do("s.close()"))
    result = invoke("kill", actor, "8080")
    assert result.exit_code == 1
    assert "nobody was signalled" in str(result.exception)
    assert is_alive(child)


def test_kill_signals_nobody_when_the_holder_has_ended(actor, monkeypatch):
    actor.do("s = listener(port=8080); child = fork(lambda: None); s.close()")
    at_the_question(monkeypatch, lambda: actor.do("kill(child)"))
    result = invoke("kill", actor, "8080")
    assert result.exit_code == 1
    assert "nobody was signalled" in str(result.exception)


def test_what_came_to_hold_the_port_since_is_not_signalled_and_named(actor, monkeypatch):
    reap_in_the_background(actor)
    actor.do("s = listener(port=8080); old = fork(lambda: None)")
    monkeypatch.setattr(kill, "_PATIENCE", 0.2)
    monkeypatch.setattr(kill, "why_not_signalled", lambda one: "kept" if one.pid == actor.pid else None)
    at_the_question(monkeypatch, lambda: actor.do("new = fork(lambda: None); s.close()"))
    result = invoke("kill", actor, "8080")
    new = actor.do("new")
    assert result.exit_code == 1
    assert f"is held again, by {actor.process} ({new})" in str(result.exception)
    assert not is_alive(actor.do("old"))
    assert is_alive(new)


def test_kill_says_that_who_was_spared_holds_it_still(actor, monkeypatch):
    reap_in_the_background(actor)
    actor.do("s = listener(port=8080); child = fork(lambda: None)")
    monkeypatch.setattr(kill, "_PATIENCE", 0.2)
    monkeypatch.setattr(kill, "why_not_signalled", lambda one: "kept" if one.pid == actor.pid else None)
    result = invoke("kill", actor, "8080", "--yes")
    assert result.exit_code == 1
    said = f"still held after 0.2 s, by {actor.process} ({actor.pid}); who was not signalled"
    assert said in str(result.exception)
    assert f"{actor.process} ({actor.pid}) is not signalled: kept" in result.stderr
    assert not is_alive(actor.do("child"))


def test_a_later_process_of_the_same_pid_is_not_signalled(actor, monkeypatch):
    actor.do("s = listener(port=8080)")
    shown = Process(actor.pid, actor.start_time - 10_000_000, actor.process, 0)
    monkeypatch.setattr(kill, "_targets", lambda *_: (shown,))
    result = invoke("kill", actor, "8080", "--yes")
    assert result.exit_code == 1
    assert "nobody was signalled" in str(result.exception)
    assert is_alive(actor.pid)


def test_whom_we_may_not_signal_we_do_not_and_say_so(actor, monkeypatch):
    actor.do("s = listener(port=8080)")
    asked = []

    def refuse(_, number):
        asked.append(number)
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    result = invoke("kill", actor, "8080", "--yes")
    assert type(result.exception).__name__ == "NotPermitted"
    assert "takes CAP_KILL" in str(result.exception)
    assert asked == [0]


IN_A_PID_NAMESPACE = """
import subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-c", "import socket, sys; s = socket.create_server(('127.0.0.1', 8080));"
    "print(flush=True); sys.stdin.read()"],
    stdin=-1, stdout=-1,
)
child.stdout.readline()
subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=True)
killed = subprocess.run(sys.argv[1:])
if child.poll() is None:
    child.kill()
sys.exit(killed.returncode)
"""


def test_in_a_pid_namespace_kill_goes_by_its_pids_or_signals_nobody(actor, engine):
    kill = [*PORTWATCH, "kill", *poll_often("kill"), "8080", "--yes", *engine]
    inside = ["nsenter", f"--net={actor.namespace}", "unshare", "--pid", "--fork", "--mount"]
    inside += [sys.executable, "-c", IN_A_PID_NAMESPACE]
    result = subprocess.run([*inside, *kill], capture_output=True, text=True, check=False, timeout=PATIENCE)
    if "poll" in engine:
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[-1] == "port 8080 is free"
    else:
        assert result.returncode == 1
        assert "signals go by other pids" in result.stderr
        assert "docker run --pid=host" in result.stderr


def test_whose_port_is_not_ours_to_see_that_is_said(actor):
    actor.do("s = listener(port=8080)")
    blind = [
        "nsenter",
        f"--net={actor.namespace}",
        "setpriv",
        "--reuid=65534",
        "--clear-groups",
        "--inh-caps=-all",
    ]
    result = subprocess.run(
        [*blind, *PORTWATCH, "kill", "8080", "--yes", "--engine", "poll"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 3, result.stderr
    assert "CAP_SYS_PTRACE" in result.stderr


def test_portwatch_does_not_signal_itself(actor):
    command = [*PORTWATCH, "kill", "8080", "--yes"]
    becomes_portwatch = (
        "import os, socket; s = socket.create_server(('127.0.0.1', 8080)); s.set_inheritable(True); "
        f"os.execv({command[0]!r}, {command!r})"
    )
    inside = ["nsenter", f"--net={actor.namespace}", sys.executable, "-c", becomes_portwatch]
    result = subprocess.run(inside, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert result.returncode == 1
    told, answer = result.stderr.splitlines()
    assert "is not signalled: that is portwatch itself" in told
    assert "nobody else holds port 8080" in answer


CALLED_WORKER = "open('/proc/self/comm', 'w').write('worker')"


@pytest.mark.parametrize("scope", ["--pid", "--process"])
def test_who_shares_a_socket_with_who_was_asked_for_is_not_signalled(actor, engine, scope):
    reap_in_the_background(actor)
    actor.do(f"s = listener(port=8080); child = fork(lambda: {CALLED_WORKER})")
    child = actor.do("child")
    wanted = {"--pid": str(child), "--process": "work*"}[scope]
    result = run("kill", actor, "8080", "--yes", scope, wanted, *engine)
    assert result.returncode == 1
    assert f"SIGTERM was sent to worker ({child})\n" in result.stdout
    told, answer = result.stderr.splitlines()
    assert f"{actor.process} ({actor.pid}) is not signalled: it is outside of what was asked for" in told
    assert f"still held after 5 s, by {actor.process} ({actor.pid}); who was not signalled" in answer
    assert is_alive(actor.pid)
    assert not is_alive(child)


def test_where_no_holder_fits_all_that_was_asked_for_nobody_is_signalled(actor):
    actor.do(f"s = listener(port=8080); child = fork(lambda: {CALLED_WORKER})")
    child = actor.do("child")
    result = run("kill", actor, "8080", "--yes", "--process", actor.process, "--pid", str(child))
    assert result.returncode == 1
    assert "nobody else holds port 8080, or was asked for: nobody was signalled" in result.stderr
    assert is_alive(actor.pid)
    assert is_alive(child)


def test_what_others_listen_on_is_not_said_to_be_free(actor, make_actor, engine):
    reap_in_the_background(actor)
    other = make_actor(actor.namespace)
    other.do("s = listener('127.0.0.2', 8080)")
    actor.do("s = listener(port=8080); child = fork(lambda: None); s.close()")
    result = run("kill", actor, "8080", "--yes", "--pid", str(actor.do("child")), *engine)
    assert result.returncode == 0
    assert result.stdout.splitlines()[-1] == f"port 8080 is free but for {other.process} ({other.pid})"
    assert is_alive(other.pid)


def test_a_port_that_is_let_go_of_at_the_last_moment_is_free(actor, monkeypatch):
    monkeypatch.setattr(kill, "_PATIENCE", 0.0)
    actor.do("signal.signal(signal.SIGTERM, signal.SIG_IGN); s = listener(port=8080)")
    until_gone = kill.PortWait.until_gone

    def lets_go(waiting, timeout):
        was_gone = until_gone(waiting, timeout)
        actor.do("s.close()")
        return was_gone

    monkeypatch.setattr(kill.PortWait, "until_gone", lets_go)
    result = invoke("kill", actor, "8080", "--yes")
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "port 8080 is free")


def test_a_socket_on_its_way_is_held_by_nobody_who_was_not_signalled(actor, monkeypatch):
    reap_in_the_background(actor)
    monkeypatch.setattr(kill, "_PATIENCE", 0.2)
    actor.do("a, b = socket.socketpair(socket.AF_UNIX); s = listener(port=8080); child = fork(lambda: None)")
    actor.do("socket.send_fds(a, [b'x'], [s.fileno()]); s.close()")
    result = invoke("kill", actor, "8080", "--yes")
    assert result.exit_code == 1
    assert "still held after 0.2 s, by no process that we can see" in str(result.exception)
    assert "who was not signalled" not in str(result.exception)


def test_kill_where_nobody_listens_says_so(actor, make_actor):
    elsewhere = make_actor()
    elsewhere.do("s = listener(port=8080)")
    result = run("kill", actor, "8080", "--yes")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("portwatch: nobody listens on port 8080; outside of what was asked for")
    assert is_alive(elsewhere.pid)


def test_what_the_kernel_itself_listens_on_no_signal_ends(actor):
    result = actor.attempt(
        "ip('link', 'add', 'vx0', 'type', 'vxlan', 'id', '7', 'dstport', '4789', 'dev', 'lo'); "
        "ip('link', 'set', 'vx0', 'up')"
    )
    if "error" in result:
        pytest.skip("this kernel has no VXLAN")
    assert "no process" in run("who", actor, "udp/4789").stdout
    result = run("kill", actor, "udp/4789", "--yes")
    assert result.returncode == 1
    assert "the kernel itself listens" in result.stderr
