"""GET /api/v0/who."""

import os
import socket
import subprocess
import sys

import pytest


def test_who_returns_the_command_line_and_ancestry_of_a_holder(daemon, listed_port):
    entry = daemon.who(listed_port)
    assert entry["ancestry"][-1]["pid"] == os.getpid()
    assert entry["holders"][0]["command"][0]


def test_who_returns_the_holders_at_the_time_of_the_request(daemon):
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
def test_a_request_that_came_through_a_proxy_gets_no_command_lines(daemon, listed_port, header):
    entry = daemon.who(listed_port, **{header: "203.0.113.1"})
    assert entry["ancestry"]
    assert entry["command"] is None
    assert [holder["command"] for holder in entry["holders"]] == [None]
