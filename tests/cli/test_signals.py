"""How SIGINT, SIGTERM and SIGHUP end commands."""

import signal
import socket
import sys
import textwrap

import pytest
from commands import ends_cleanly, run, start_tail
from privileges import needs_core


@pytest.fixture(autouse=True)
def _default_handlers():
    """Set the default handlers, because tests in the background or under nohup inherit ignored signals."""
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("times", [1, 2])
def test_tail_exits_with_0_silently_on_a_signal(number, times, listening_port):
    with start_tail(listening_port) as tail:
        assert str(listening_port) in tail.stdout.readline()
        for _ in range(times):
            tail.send_signal(number)
        assert ends_cleanly(tail)


def test_tail_under_nohup_keeps_ignoring_sighup(listening_port):
    with start_tail(listening_port, prefix=["nohup"]) as tail:
        tail.stdout.readline()
        tail.send_signal(signal.SIGHUP)
        with socket.create_server(("127.0.0.2", listening_port)):
            assert str(listening_port) in tail.stdout.readline()
        tail.terminate()
        assert ends_cleanly(tail)


BEFORE_THE_COMMAND = "interrupt_at(cli._Commands, 'get_command')"
MOMENTS = {
    "before the command is imported": BEFORE_THE_COMMAND,
    "while the engine is chosen": "interrupt_at(hub, 'choose')",
    "while the snapshot is taken": "interrupt_at(Subscription, 'get')",
}


def interrupted(command, patch, engine):
    """Return a command line that runs a portwatch command and sends itself SIGINT when `patch` says so."""
    program = f"""
        import os, signal, sys
        from portwatch.cli import main as cli
        from portwatch.engines.core import libbpf
        from portwatch.watch import hub
        from portwatch.watch.subscription import Subscription

        def interrupt():
            os.kill(os.getpid(), signal.SIGINT)

        def interrupt_at(owner, name):
            original = getattr(owner, name)
            setattr(owner, name, lambda *args, **kwargs: (interrupt(), original(*args, **kwargs))[1])

        {patch}
        sys.argv[1:] = ["{command}", "--engine", "{engine}"]
        cli.main()
    """
    return [sys.executable, "-c", textwrap.dedent(program)]


@pytest.mark.parametrize("patch", MOMENTS.values(), ids=MOMENTS)
def test_tail_exits_with_0_silently_on_a_signal_during_startup(patch):
    result = run(command=interrupted("tail", patch, "poll"))
    assert (result.returncode, result.stderr) == (0, "")


@needs_core
def test_tail_exits_with_0_silently_on_a_signal_during_a_libbpf_callback():
    patch = "keep = libbpf._keep_warning; libbpf._keep_warning = lambda *args: (interrupt(), keep(*args))"
    result = run(command=interrupted("tail", patch, "core"))
    assert (result.returncode, result.stderr) == (0, "")


def test_a_signal_ends_the_list_command_silently_with_a_failure_status():
    result = run(command=interrupted("list", BEFORE_THE_COMMAND, "poll"))
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")
