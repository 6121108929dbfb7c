"""Fixtures shared by the tests of the server: a running daemon and an open port."""

import socket

import pytest
from daemon import serving


@pytest.fixture(scope="module")
def daemon():
    """A daemon that all tests of a module share."""
    with serving() as running:
        yield running


@pytest.fixture
def port():
    """A port that this process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def listed_port(daemon, port):
    """A port that this process listens on and that the daemon lists."""
    daemon.wait_for(port)
    return port
