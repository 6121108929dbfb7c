"""portwatch wait, on real sockets of other processes."""

import subprocess

import pytest
from port_commands import PORTWATCH, poll_often, reap_in_the_background, run
from support import ENGINE_NAMES, PATIENCE


class Waiter:
    """A portwatch wait that runs, and has seen what was open when it began."""

    def __init__(self, actor, *arguments):
        self.process = subprocess.Popen(
            [*PORTWATCH, "wait", *poll_often("wait"), "--netns", actor.namespace, *arguments],
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
