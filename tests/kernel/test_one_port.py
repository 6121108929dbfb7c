"""who, wait and kill, on the real sockets of other processes."""

import errno
import json
import os
import pty
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner
from support import ENGINE_NAMES, PATIENCE

from portwatch import list_listeners
from portwatch.cli.commands import kill
from portwatch.cli.main import portwatch
from portwatch.model import Process
from portwatch.port.forwarders import forwarder_of

EVIL = "\x1b]0;owned\x07"
PORTWATCH = [sys.executable, "-m", "portwatch"]


def often(command):
    """Poll often, for commands that may poll."""
    return [] if command == "who" else ["--interval", "0.05"]


def run(command, actor, *arguments):
    return subprocess.run(
        [*PORTWATCH, command, *often(command), "--netns", actor.namespace, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def answer(result):
    """What is said of the actor's namespace, whatever goes on in others of this machine."""
    return result.stdout.removesuffix("\n").partition("; outside of what was asked for")[0]


def invoke(command, actor, *arguments):
    """In this process, where a test can reach into it."""
    arguments = (command, *often(command), "--netns", actor.namespace, *arguments)
    return CliRunner().invoke(portwatch, arguments, prog_name="portwatch")


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def reap_in_the_background(actor):
    """Children that are ended must not stay zombies, for which their parent is to blame."""
    actor.do("import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)")


class Waiter:
    """A portwatch wait that runs, and has seen what was open when it began."""

    def __init__(self, actor, *arguments):
        self.process = subprocess.Popen(
            [*PORTWATCH, "wait", *often("wait"), "--netns", actor.namespace, *arguments],
            stderr=subprocess.PIPE,
            text=True,
        )

    def is_over(self):
        return self.process.poll() is not None

    def code(self):
        self.process.communicate(timeout=PATIENCE)
        return self.process.returncode


@pytest.fixture
def make_waiter():
    made = []

    def make(*arguments):
        made.append(Waiter(*arguments))
        return made[-1]

    yield make
    for waiter in made:
        waiter.process.kill()
        waiter.process.communicate()


# who


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


# wait


def test_wait_returns_at_once_where_somebody_listens_already(actor, engine, make_waiter):
    actor.do("s = listener(port=8080)")
    assert make_waiter(actor, "8080", *engine).code() == 0


@pytest.mark.parametrize("how", ["listener(port=8080)", "bound(port=8080)"])
def test_wait_returns_when_somebody_listens(actor, engine, make_waiter, how):
    actor.do("other = listener(port=8081)")
    waiter = make_waiter(actor, "8080", *engine)
    sentinel = make_waiter(actor, "8081", *engine)
    assert sentinel.code() == 0  # so the other has seen by now, or will see in its snapshot
    assert not waiter.is_over()
    actor.do(f"s = {how}")
    assert waiter.code() == 0


def test_wait_is_for_that_protocol(actor, make_waiter):
    actor.do("u = bound(port=8080)")
    assert make_waiter(actor, "tcp/8080", "--timeout", "0").code() == 124
    assert make_waiter(actor, "udp/8080", "--timeout", "0").code() == 0


def test_wait_ends_with_124_when_time_is_up(actor, engine):
    result = run("wait", actor, "8080", "--timeout", "0.1", *engine)
    assert (result.returncode, result.stdout) == (124, "")
    assert "nobody listens on port 8080 yet" in result.stderr


def test_wait_looks_at_its_own_namespace_only(actor, make_actor):
    elsewhere = make_actor()
    elsewhere.do("s = listener(port=8080)")
    command = [*PORTWATCH, "wait", "8080", "--timeout", "0"]
    for where, expected in ((actor, 124), (elsewhere, 0)):
        inside = ["nsenter", f"--net={where.namespace}", *command]
        assert subprocess.run(inside, capture_output=True, check=False).returncode == expected
        inside += ["--netns", "all"]
        assert subprocess.run(inside, capture_output=True, check=False).returncode == 0


def test_wait_gone_returns_when_the_last_socket_is_closed(actor, engine, make_waiter):
    actor.do(
        "made = [listener(a, 8080, options=[(1, 15, 1)]) for a in ('127.0.0.1', '127.0.0.1', '127.0.0.2')]"
    )
    waiter = make_waiter(actor, "8080", "--gone", *engine)
    assert run("wait", actor, "8080", "--gone", "--timeout", "0", *engine).returncode == 124
    actor.do("made.pop().close(); made.pop().close()")
    assert run("wait", actor, "8080", "--gone", "--timeout", "0", *engine).returncode == 124
    assert not waiter.is_over()
    actor.do("made.pop().close()")
    assert waiter.code() == 0


def test_a_tree_narrows_what_is_meant(actor, make_actor, engine, make_waiter):
    other = make_actor(actor.namespace)
    actor.do("child = fork(lambda: globals().update(s=listener(port=8080)))")
    for pid, code in ((actor.pid, 0), (other.pid, 1)):
        assert run("who", actor, "8080", "--pid", str(pid), *engine).returncode == code
    waiter = make_waiter(actor, "8080", "--gone", "--pid", str(actor.pid), *engine)
    for pid, code in ((actor.pid, 0), (other.pid, 124)):
        result = run("wait", actor, "8080", "--timeout", "0", "--pid", str(pid), *engine)
        assert result.returncode == code
    assert run("kill", actor, "8080", "--yes", "--pid", str(other.pid), *engine).returncode == 1
    assert not waiter.is_over()
    reap_in_the_background(actor)
    assert run("kill", actor, "8080", "--yes", "--pid", str(actor.pid), *engine).returncode == 0
    assert waiter.code() == 0


def test_a_tree_that_is_left_out_is_not_meant(actor, make_actor, engine):
    other = make_actor(actor.namespace)
    actor.do("child = fork(lambda: globals().update(s=listener(port=8080)))")
    for pid, codes in ((actor.pid, (1, 124, 1)), (other.pid, (0, 0, 0))):
        tree = ["--not-pid", str(pid), *engine]
        assert run("who", actor, "8080", *tree).returncode == codes[0]
        assert run("wait", actor, "8080", "--timeout", "0", *tree).returncode == codes[1]
        assert run("kill", actor, "8080", "--dry-run", *tree).returncode == codes[2]


def test_a_listing_of_a_tree_is_what_it_holds(actor, make_actor, engine):
    other = make_actor(actor.namespace)
    actor.do("s = listener(port=8080); child = fork(lambda: globals().update(t=listener(port=8081)))")
    other.do("s = listener(port=8082)")
    for pid, ports in ((actor.pid, {8080, 8081}), (actor.do("child"), {8080, 8081}), (other.pid, {8082})):
        found = list_listeners(pid, engine=engine[1])
        assert {one.socket.port for one in found} == ports
    but_for_another = list_listeners(os.getpid(), not_pids=[actor.pid], engine=engine[1])
    assert {one.socket.port for one in but_for_another if one.socket.netns == actor.netns} == {8082}


def test_wait_gone_returns_at_once_where_nobody_listens(actor, engine):
    assert run("wait", actor, "8080", "--gone", *engine).returncode == 0


def test_wait_gone_is_about_who_was_meant_whoever_closes_it(actor, make_waiter):
    actor.do("s = listener(port=8080)")
    waiter = make_waiter(actor, "8080", "--gone", "--not-process", "other")
    assert run("wait", actor, "8080", "--gone", "--timeout", "0").returncode == 124
    actor.do("child = fork(lambda: open('/proc/self/comm', 'w').write('other')); s.close()")
    assert run("wait", actor, "8080", "--gone", "--timeout", "0").returncode == 124
    actor.do("kill(child)")
    assert waiter.code() == 0


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_wait_without_the_rights_says_which(name):
    if name == "poll":
        return
    nobody = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    result = subprocess.run(
        [*nobody, *PORTWATCH, "wait", "8080", "--engine", name], capture_output=True, text=True, check=False
    )
    assert result.returncode == 3
    assert "CAP_" in result.stderr
    assert len(result.stderr.splitlines()) == 1


# kill


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
    kill = [*PORTWATCH, "kill", *often("kill"), "8080", "--yes", *engine]
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


def test_a_forwarder_is_told_with_whom_it_forwards_to(actor, make_actor):
    inside = make_actor()
    inside.do("ip('addr', 'add', '172.30.99.2/32', 'dev', 'lo'); s = listener('172.30.99.2', 80)")
    actor.do(
        'code = \'import socket, sys; s = socket.create_server(("127.0.0.1", 8080)); '
        "print(flush=True); sys.stdin.read()'"
    )
    actor.do(
        "p = subprocess.Popen(['docker-proxy', '-c', code, '-proto', 'tcp', '-container-ip', '172.30.99.2', "
        "'-container-port', '80'], executable=sys.executable, stdin=-1, stdout=-1); p.stdout.readline()"
    )
    for command in (("who", "8080"), ("kill", "8080", "--dry-run")):
        result = run(command[0], actor, *command[1:])
        assert (
            f"only forwards to 172.30.99.2:80, where {inside.process} ({inside.pid}) listens" in result.stdout
        )
        assert "docker stop" in result.stdout
    actor.do("p.kill(); p.wait()")


def behind(address, port=80):
    command = ("docker-proxy", "-proto", "tcp", "-container-ip", address, "-container-port", str(port))
    return forwarder_of(Process(1, 1, "docker-proxy", 0), command, list_listeners())


def test_of_several_namespaces_with_the_address_the_one_where_somebody_listens_is_behind(make_actor):
    first, second = make_actor(), make_actor()
    for one in (first, second):
        one.do("ip('addr', 'add', '172.30.99.4/32', 'dev', 'lo')")
    assert behind("172.30.99.4").listeners == ()
    second.do("s = listener('172.30.99.4', 80)")
    assert [one.pid for one in behind("172.30.99.4").listeners] == [second.pid]
    first.do("s = listener('172.30.99.4', 80)")
    unknown = behind("172.30.99.4")
    assert (unknown.listeners, unknown.container) == ((), None)
    assert "docker ps" in unknown.advice


def test_an_ipv6_address_is_found_like_an_ipv4_one(make_actor):
    inside = make_actor()
    inside.do("ip('addr', 'add', 'fd00:99::2/128', 'dev', 'lo'); s = listener('fd00:99::2', 80, family=V6)")
    found = behind("fd00:99::2")
    assert (found.target, [one.pid for one in found.listeners]) == ("[fd00:99::2]:80", [inside.pid])


@pytest.mark.parametrize(
    ("called", "advice"),
    [
        ("rootlesskit", "ending it ends every container"),
        ("pasta.avx2", "podman stop"),
        ("pasta", "podman stop"),
    ],
)
def test_forwarders_without_root_are_known(called, advice):
    assert advice in forwarder_of(Process(1, 1, called, 0), None, []).advice


def test_the_container_behind_a_docker_proxy_is_named(make_actor):
    inside = make_actor()
    inside.do("ip('addr', 'add', '172.30.99.3/32', 'dev', 'lo'); s = listener('172.30.99.3', 80)")
    behind = Process(inside.pid, inside.start_time, inside.process, 0, container="ab" * 32)
    (listener,) = [one for one in list_listeners() if one.socket.netns == inside.netns]
    object.__setattr__(listener, "holders", (behind,))
    command = ("/usr/bin/docker-proxy", "-proto", "tcp", "-host-port", "8080")
    command += ("-container-ip", "172.30.99.3", "-container-port", "80")
    found = forwarder_of(Process(1, 1, "docker-proxy", 0), command, [listener])
    assert (found.container, found.target) == ("ab" * 32, "172.30.99.3:80")
    assert found.advice == "docker stop abababababab"
