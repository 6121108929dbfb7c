"""The command `portwatch wait` on real sockets."""

import subprocess

import pytest
from commands import PORTWATCH
from port_commands import poll_often, reap_in_the_background, run
from support import ENGINE_NAMES, PATIENCE


class Waiter:
    """A process that runs `portwatch wait`."""

    def __init__(self, actor, *arguments):
        self.process = subprocess.Popen(
            [*PORTWATCH, "wait", *poll_often("wait"), "--netns", actor.namespace, *arguments],
            stderr=subprocess.PIPE,
            text=True,
        )

    def has_exited(self):
        return self.process.poll() is not None

    def exit_code(self):
        """Wait until the process exits, and return its exit code."""
        self.process.communicate(timeout=PATIENCE)
        return self.process.returncode


@pytest.fixture
def make_waiter():
    waiters = []

    def make(*arguments):
        waiters.append(Waiter(*arguments))
        return waiters[-1]

    yield make
    for waiter in waiters:
        waiter.process.kill()
        waiter.process.communicate()


def test_wait_returns_at_once_if_the_port_is_open(actor, engine, make_waiter):
    actor.do("s = listener(port=8080)")
    assert make_waiter(actor, "8080", *engine).exit_code() == 0


@pytest.mark.parametrize("socket", ["listener(port=8080)", "bound(port=8080)"])
def test_wait_returns_when_the_port_opens(actor, engine, make_waiter, socket):
    actor.do("other = listener(port=8081)")
    waiter = make_waiter(actor, "8080", *engine)
    sentinel = make_waiter(actor, "8081", *engine)
    # When the sentinel exits, the waiter has probably started too. If not, its snapshot will include the port.
    assert sentinel.exit_code() == 0
    assert not waiter.has_exited()
    actor.do(f"s = {socket}")
    assert waiter.exit_code() == 0


def test_wait_with_a_protocol_waits_only_for_sockets_of_that_protocol(actor, make_waiter):
    actor.do("u = bound(port=8080)")
    assert make_waiter(actor, "tcp/8080", "--timeout", "0").exit_code() == 124
    assert make_waiter(actor, "udp/8080", "--timeout", "0").exit_code() == 0


def test_wait_exits_with_124_after_the_timeout(actor, engine):
    result = run("wait", actor, "8080", "--timeout", "0.1", *engine)
    assert (result.returncode, result.stdout) == (124, "")
    assert "nothing listens on port 8080 yet" in result.stderr


def test_wait_searches_only_its_own_network_namespace_by_default(actor, make_actor):
    elsewhere = make_actor()
    elsewhere.do("s = listener(port=8080)")
    command = [*PORTWATCH, "wait", "8080", "--timeout", "0"]
    for place, expected in ((actor, 124), (elsewhere, 0)):
        inside = ["nsenter", f"--net={place.namespace}", *command]
        assert subprocess.run(inside, capture_output=True, check=False).returncode == expected
        inside += ["--netns", "all"]
        assert subprocess.run(inside, capture_output=True, check=False).returncode == 0


def test_wait_gone_returns_when_the_last_socket_closes(actor, engine, make_waiter):
    actor.do(
        "sockets = [listener(a, 8080, options=[(1, 15, 1)]) for a in ('127.0.0.1', '127.0.0.1', '127.0.0.2')]"
    )
    waiter = make_waiter(actor, "8080", "--gone", *engine)
    assert run("wait", actor, "8080", "--gone", "--timeout", "0", *engine).returncode == 124
    actor.do("sockets.pop().close(); sockets.pop().close()")
    assert run("wait", actor, "8080", "--gone", "--timeout", "0", *engine).returncode == 124
    assert not waiter.has_exited()
    actor.do("sockets.pop().close()")
    assert waiter.exit_code() == 0


def test_pid_restricts_who_wait_and_kill_to_a_tree(actor, make_actor, engine, make_waiter):
    other = make_actor(actor.namespace)
    actor.do("child = fork(lambda: globals().update(s=listener(port=8080)))")
    for pid, code in ((actor.pid, 0), (other.pid, 1)):
        assert run("who", actor, "8080", "--pid", str(pid), *engine).returncode == code
    waiter = make_waiter(actor, "8080", "--gone", "--pid", str(actor.pid), *engine)
    for pid, code in ((actor.pid, 0), (other.pid, 124)):
        result = run("wait", actor, "8080", "--timeout", "0", "--pid", str(pid), *engine)
        assert result.returncode == code
    assert run("kill", actor, "8080", "--yes", "--pid", str(other.pid), *engine).returncode == 1
    assert not waiter.has_exited()
    reap_in_the_background(actor)
    assert run("kill", actor, "8080", "--yes", "--pid", str(actor.pid), *engine).returncode == 0
    assert waiter.exit_code() == 0


def test_not_pid_excludes_a_tree_from_who_wait_and_kill(actor, make_actor, engine):
    other = make_actor(actor.namespace)
    actor.do("child = fork(lambda: globals().update(s=listener(port=8080)))")
    for pid, codes in ((actor.pid, (1, 124, 1)), (other.pid, (0, 0, 0))):
        tree = ["--not-pid", str(pid), *engine]
        assert run("who", actor, "8080", *tree).returncode == codes[0]
        assert run("wait", actor, "8080", "--timeout", "0", *tree).returncode == codes[1]
        assert run("kill", actor, "8080", "--dry-run", *tree).returncode == codes[2]


def test_wait_gone_returns_at_once_if_the_port_is_closed(actor, engine):
    assert run("wait", actor, "8080", "--gone", *engine).returncode == 0


def test_wait_gone_ends_when_a_process_outside_the_scope_closes_the_socket(actor, make_waiter):
    actor.do("s = listener(port=8080)")
    waiter = make_waiter(actor, "8080", "--gone", "--not-process", "other")
    assert run("wait", actor, "8080", "--gone", "--timeout", "0").returncode == 124
    actor.do("child = fork(lambda: open('/proc/self/comm', 'w').write('other')); s.close()")
    assert run("wait", actor, "8080", "--gone", "--timeout", "0").returncode == 124
    actor.do("kill(child)")
    assert waiter.exit_code() == 0


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_wait_without_privileges_exits_with_3_and_names_the_capability(name):
    if name == "poll":
        return
    unprivileged = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    result = subprocess.run(
        [*unprivileged, *PORTWATCH, "wait", "8080", "--engine", name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 3
    assert "CAP_" in result.stderr
    assert len(result.stderr.splitlines()) == 1
