"""GET /api/v0/who."""

import os
import socket
import subprocess
import sys

import pytest


def test_a_holder_has_its_command_line_and_ancestry(daemon, listed_port):
    entry = daemon.who(listed_port)
    assert entry["ancestry"][-1]["pid"] == os.getpid()
    assert entry["holders"][0]["command"][0]


def test_holders_are_those_at_the_time_of_the_request(daemon):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        daemon.wait_for(port)
        heir = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[server.fileno()]
        )
    entry = daemon.who(port)
    heir.communicate(b"\n")
    assert [holder["pid"] for holder in entry["holders"]] == [heir.pid]


@pytest.mark.parametrize("header", ["Forwarded", "X_Forwarded_For", "Via"])
def test_command_lines_are_hidden_from_proxies(daemon, listed_port, header):
    entry = daemon.who(listed_port, **{header: "203.0.113.1"})
    assert entry["ancestry"]
    assert entry["command"] is None
    assert [holder["command"] for holder in entry["holders"]] == [None]
