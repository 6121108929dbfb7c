"""The command `portwatch kill` on real sockets."""

import errno
import os
import pty
import signal
import subprocess
import sys

import pytest
from commands import PORTWATCH
from port_commands import invoke, poll_often, reap_in_the_background, run
from support import PATIENCE

from portwatch.cli.commands import kill
from portwatch.model import Process


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_kill_ends_every_holder_and_reports_that_the_port_is_free(actor, engine):
    reap_in_the_background(actor)
    actor.do("s = listener(port=8080); children = [fork(lambda: None) for _ in range(3)]; s.close()")
    children = actor.do("children")
    result = run("kill", actor, "8080", "--yes", *engine)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "port 8080 is free"
    assert all(f"({child})" in result.stdout for child in children)
    assert not any(map(is_alive, children))
    assert is_alive(actor.pid)


def test_a_dry_run_prints_the_targets_and_signals_none(actor):
    actor.do("s = listener(port=8080)")
    result = run("kill", actor, "8080", "--dry-run")
    assert result.returncode == 0
    assert result.stdout.splitlines()[0] == "tcp 127.0.0.1:8080, loopback"
    assert f"{actor.process} ({actor.pid}), root: " in result.stdout
    assert is_alive(actor.pid)


def test_kill_without_a_terminal_requires_yes(actor):
    actor.do("s = listener(port=8080)")
    result = run("kill", actor, "8080")
    assert result.returncode == 2
    assert f"({actor.pid})" in result.stdout
    assert "pass --yes" in result.stderr
    assert is_alive(actor.pid)


@pytest.mark.parametrize(("answer", "code"), [(b"n\n", 1), (b"\n", 1), (b"y\n", 0)])
def test_kill_asks_for_confirmation_on_a_terminal(actor, answer, code):
    reap_in_the_background(actor)
    actor.do("s = listener(port=8080); child = fork(lambda: None); s.close()")
    child = actor.do("child")
    master, terminal = pty.openpty()
    try:
        os.write(master, answer)
        result = subprocess.run(
            [*PORTWATCH, "kill", "--netns", actor.namespace, "8080"],
            stdin=terminal,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    finally:
        os.close(master)
        os.close(terminal)
    assert result.returncode == code
    assert f"Send SIGTERM to {actor.process} ({child})? [y/N]" in result.stderr
    assert is_alive(child) == bool(code)


def test_a_process_that_ignores_the_signal_is_named_and_sigkill_is_suggested(actor, engine, monkeypatch):
    reap_in_the_background(actor)
    monkeypatch.setattr(kill, "_TIMEOUT", 0.2)
    actor.do("signal.signal(signal.SIGTERM, signal.SIG_IGN); s = listener(port=8080)")
    actor.do("child = fork(lambda: None); s.close()")
    child = actor.do("child")
    result = invoke("kill", actor, "8080", "--yes", *engine)
    assert result.exit_code == 1
    message = f"still held after 0.2 s, by {actor.process} ({child}); if it ignores SIGTERM, try --signal KILL"
    assert message in str(result.exception)
    assert is_alive(child)
    assert run("kill", actor, "8080", "--yes", "--signal", "kill", *engine).returncode == 0
    assert not is_alive(child)


def during_the_question(monkeypatch, action):
    """Replace the prompt for confirmation by an action, and then confirm."""

    def confirm(*_):
        action()
        return True

    monkeypatch.setattr(kill, "_is_confirmed", confirm)


def test_nothing_is_signalled_if_another_process_took_over_the_port(actor, make_actor, monkeypatch, engine):
    actor.do("s = listener(port=8080)")
    successor = make_actor(actor.namespace)

    def change_hands():
        actor.do("s.close()")
        successor.do("s = listener(port=8080)")

    during_the_question(monkeypatch, change_hands)
    result = invoke("kill", actor, "8080", *engine)
    assert result.exit_code == 1
    assert f"{actor.process} ({actor.pid}) has ended or no longer holds the port" in str(result.exception)
    assert "no process was signalled" in str(result.exception)
    assert is_alive(actor.pid)
    assert is_alive(successor.pid)


def test_nothing_is_signalled_if_one_of_several_holders_closed_the_socket(actor, monkeypatch):
    actor.do("s = listener(port=8080); child = fork(lambda: None)")
    child = actor.do("child")
    during_the_question(monkeypatch, lambda: actor.do("s.close()"))
    result = invoke("kill", actor, "8080")
    assert result.exit_code == 1
    assert "no process was signalled" in str(result.exception)
    assert is_alive(child)


def test_nothing_is_signalled_if_the_holder_has_exited(actor, monkeypatch):
    actor.do("s = listener(port=8080); child = fork(lambda: None); s.close()")
    during_the_question(monkeypatch, lambda: actor.do("kill(child)"))
    result = invoke("kill", actor, "8080")
    assert result.exit_code == 1
    assert "no process was signalled" in str(result.exception)


def test_a_new_holder_is_named_but_not_signalled(actor, monkeypatch):
    reap_in_the_background(actor)
    actor.do("s = listener(port=8080); old = fork(lambda: None)")
    monkeypatch.setattr(kill, "_TIMEOUT", 0.2)
    monkeypatch.setattr(kill, "why_not_signalled", lambda process: "kept" if process.pid == actor.pid else None)
    during_the_question(monkeypatch, lambda: actor.do("new = fork(lambda: None); s.close()"))
    result = invoke("kill", actor, "8080")
    new = actor.do("new")
    assert result.exit_code == 1
    assert f"is held again, by {actor.process} ({new})" in str(result.exception)
    assert not is_alive(actor.do("old"))
    assert is_alive(new)


def test_a_skipped_process_that_still_holds_the_port_is_named(actor, monkeypatch):
    reap_in_the_background(actor)
    actor.do("s = listener(port=8080); child = fork(lambda: None)")
    monkeypatch.setattr(kill, "_TIMEOUT", 0.2)
    monkeypatch.setattr(kill, "why_not_signalled", lambda process: "kept" if process.pid == actor.pid else None)
    result = invoke("kill", actor, "8080", "--yes")
    assert result.exit_code == 1
    message = f"still held after 0.2 s, by {actor.process} ({actor.pid}), which was not signalled (see above)"
    assert message in str(result.exception)
    assert f"{actor.process} ({actor.pid}) is not signalled: kept" in result.stderr
    assert not is_alive(actor.do("child"))


def test_another_process_that_reuses_the_pid_is_not_signalled(actor, monkeypatch):
    actor.do("s = listener(port=8080)")
    shown = Process(actor.pid, actor.start_time - 10_000_000, actor.process, 0)
    monkeypatch.setattr(kill, "_targets", lambda *_: (shown,))
    result = invoke("kill", actor, "8080", "--yes")
    assert result.exit_code == 1
    assert "no process was signalled" in str(result.exception)
    assert is_alive(actor.pid)


def test_a_missing_permission_to_signal_is_reported(actor, monkeypatch):
    actor.do("s = listener(port=8080)")
    numbers = []

    def refuse(_, number):
        numbers.append(number)
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    result = invoke("kill", actor, "8080", "--yes")
    assert type(result.exception).__name__ == "NotPermitted"
    assert "requires CAP_KILL" in str(result.exception)
    assert numbers == [0]


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


def test_kill_in_a_private_pid_namespace_works_only_with_the_poll_engine(actor, engine):
    command = [*PORTWATCH, "kill", *poll_often("kill"), "8080", "--yes", *engine]
    inside = ["nsenter", f"--net={actor.namespace}", "unshare", "--pid", "--fork", "--mount"]
    inside += [sys.executable, "-c", IN_A_PID_NAMESPACE]
    result = subprocess.run([*inside, *command], capture_output=True, text=True, check=False, timeout=PATIENCE)
    if "poll" in engine:
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[-1] == "port 8080 is free"
    else:
        assert result.returncode == 1
        assert "kill(2) uses other pids" in result.stderr
        assert "docker run --pid=host" in result.stderr


def test_kill_exits_with_3_and_names_the_missing_capability_if_it_cannot_see_the_holders(actor):
    actor.do("s = listener(port=8080)")
    unprivileged = [
        "nsenter",
        f"--net={actor.namespace}",
        "setpriv",
        "--reuid=65534",
        "--clear-groups",
        "--inh-caps=-all",
    ]
    result = subprocess.run(
        [*unprivileged, *PORTWATCH, "kill", "8080", "--yes", "--engine", "poll"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 3, result.stderr
    assert "CAP_SYS_PTRACE" in result.stderr


def test_portwatch_does_not_signal_itself(actor):
    command = [*PORTWATCH, "kill", "8080", "--yes"]
    exec_portwatch = (
        "import os, socket; s = socket.create_server(('127.0.0.1', 8080)); s.set_inheritable(True); "
        f"os.execv({command[0]!r}, {command!r})"
    )
    inside = ["nsenter", f"--net={actor.namespace}", sys.executable, "-c", exec_portwatch]
    result = subprocess.run(inside, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert result.returncode == 1
    reason, error = result.stderr.splitlines()
    assert "is not signalled: it is portwatch itself" in reason
    assert "every process that holds port 8080 was skipped" in error


RENAME_TO_WORKER = "open('/proc/self/comm', 'w').write('worker')"


@pytest.mark.parametrize("scope", ["--pid", "--process"])
def test_a_holder_outside_the_scope_is_not_signalled(actor, engine, scope):
    reap_in_the_background(actor)
    actor.do(f"s = listener(port=8080); child = fork(lambda: {RENAME_TO_WORKER})")
    child = actor.do("child")
    value = {"--pid": str(child), "--process": "work*"}[scope]
    result = run("kill", actor, "8080", "--yes", scope, value, *engine)
    assert result.returncode == 1
    assert f"sent SIGTERM to worker ({child})\n" in result.stdout
    reason, error = result.stderr.splitlines()
    assert f"{actor.process} ({actor.pid}) is not signalled: the options do not select this process" in reason
    assert (
        f"still held after 5 s, by {actor.process} ({actor.pid}), which was not signalled (see above)" in error
    )
    assert is_alive(actor.pid)
    assert not is_alive(child)


def test_a_holder_must_match_every_option_to_be_signalled(actor):
    actor.do(f"s = listener(port=8080); child = fork(lambda: {RENAME_TO_WORKER})")
    child = actor.do("child")
    result = run("kill", actor, "8080", "--yes", "--process", actor.process, "--pid", str(child))
    assert result.returncode == 1
    assert "every process that holds port 8080 was skipped: no process was signalled" in result.stderr
    assert is_alive(actor.pid)
    assert is_alive(child)


def test_kill_names_the_processes_outside_the_scope_that_still_hold_the_port(actor, make_actor, engine):
    reap_in_the_background(actor)
    other = make_actor(actor.namespace)
    other.do("s = listener('127.0.0.2', 8080)")
    actor.do("s = listener(port=8080); child = fork(lambda: None); s.close()")
    result = run("kill", actor, "8080", "--yes", "--pid", str(actor.do("child")), *engine)
    assert result.returncode == 0
    free = (
        f"port 8080 is free in the selected scope, but still held outside it, by {other.process} ({other.pid})"
    )
    assert result.stdout.splitlines()[-1] == free
    assert is_alive(other.pid)


def test_a_port_that_closes_just_after_the_timeout_is_reported_as_free(actor, monkeypatch):
    monkeypatch.setattr(kill, "_TIMEOUT", 0.0)
    actor.do("signal.signal(signal.SIGTERM, signal.SIG_IGN); s = listener(port=8080)")
    until_gone = kill.PortWait.until_gone

    def close_late(waiting, timeout):
        is_gone = until_gone(waiting, timeout)
        actor.do("s.close()")
        return is_gone

    monkeypatch.setattr(kill.PortWait, "until_gone", close_late)
    result = invoke("kill", actor, "8080", "--yes")
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "port 8080 is free")


def test_a_port_whose_descriptor_is_in_transit_is_reported_as_held_by_no_visible_process(actor, monkeypatch):
    reap_in_the_background(actor)
    monkeypatch.setattr(kill, "_TIMEOUT", 0.2)
    actor.do("a, b = socket.socketpair(socket.AF_UNIX); s = listener(port=8080); child = fork(lambda: None)")
    actor.do("socket.send_fds(a, [b'x'], [s.fileno()]); s.close()")
    result = invoke("kill", actor, "8080", "--yes")
    assert result.exit_code == 1
    assert "still held after 0.2 s, by no visible process" in str(result.exception)
    assert "not signalled" not in str(result.exception)


def test_kill_on_a_closed_port_exits_with_1(actor, make_actor):
    elsewhere = make_actor()
    elsewhere.do("s = listener(port=8080)")
    result = run("kill", actor, "8080", "--yes")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("portwatch: nothing listens on port 8080 in the selected scope, but ")
    assert is_alive(elsewhere.pid)


def test_a_kernel_socket_cannot_be_killed(actor):
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
