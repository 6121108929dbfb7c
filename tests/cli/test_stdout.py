"""What commands do if their output is closed, cannot be written, or cannot be encoded."""

import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ends_cleanly, one_line, run, start_tail
from support import PATIENCE

RENAMED_LISTENER = """
import socket, sys
open("/proc/self/comm", "w", encoding="utf-8").write("café☃")
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""


def test_a_process_name_that_stdout_cannot_encode_is_escaped():
    with subprocess.Popen(
        [sys.executable, "-c", RENAMED_LISTENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as listener:
        port = listener.stdout.readline().strip()
        with start_tail(port, env={**os.environ, "PYTHONIOENCODING": "ascii"}) as tail:
            assert rf"caf\xe9\u2603 ({listener.pid})" in tail.stdout.readline()
            tail.terminate()
            assert ends_cleanly(tail)
        listener.stdin.close()


def test_tail_exits_when_its_pipe_is_closed_even_if_no_event_comes(listening_port):
    with start_tail(listening_port) as tail:
        tail.stdout.readline()
        tail.stdout.close()
        tail.stdout = None
        assert ends_cleanly(tail)


def test_tail_exits_when_its_terminal_closes(listening_port):
    controller, terminal = pty.openpty()
    with start_tail(listening_port, stdout=terminal, env={**os.environ, "TERM": "xterm"}) as tail:
        os.close(terminal)
        assert select.select([controller], [], [], PATIENCE)[0]
        assert str(listening_port).encode() in os.read(controller, 4096)
        os.close(controller)
        assert ends_cleanly(tail)


@pytest.mark.parametrize("command", ["tail", "list", "doctor"])
def test_a_full_disk_exits_with_1_and_is_reported_in_one_line(command, listening_port):
    options = (
        [] if command == "doctor" else ["--engine", "poll", "--netns", "self", "--port", str(listening_port)]
    )
    with Path("/dev/full").open("w") as full:
        result = run(command, *options, stdout=full)
    assert result.returncode == 1
    assert "No space left on device" in one_line(result.stderr)


@pytest.mark.parametrize("command", ["tail", "list", "doctor"])
def test_a_closed_stdout_exits_with_2_and_is_reported_in_one_line(command):
    result = run(command, prefix=["sh", "-c", 'exec "$@" >&-', "sh"])
    assert result.returncode == 2
    assert "standard output is closed" in one_line(result.stderr)
