"""Fixtures for all tests, and a check that the programs that the tests run are installed."""

import os
import shutil
import signal
import socket

import pytest
from fake_engine import FakeEngine
from processes import start_parent

import portwatch.engines
from portwatch.snapshot import proc_net

TOOLS = {"ip": "iproute2", "ss": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}
"""Programs that the tests in tests/kernel run, with their packages on Debian and Ubuntu."""


def pytest_configure():
    missing = {tool: package for tool, package in TOOLS.items() if not shutil.which(tool)}
    if missing and os.geteuid() == 0:
        raise pytest.UsageError(
            f"the tests need {', '.join(missing)}: apt-get install {' '.join(sorted({*missing.values()}))}"
        )


@pytest.fixture
def engine(monkeypatch):
    """A fake engine, registered under the name "fake"."""
    fake = FakeEngine()
    monkeypatch.setattr(proc_net, "read_all", list)  # the original would list real sockets
    monkeypatch.setitem(portwatch.engines.ENGINES, "fake", lambda _: fake)
    return fake


@pytest.fixture
def listening_port():
    """A TCP port on 127.0.0.1 on which this process listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def family():
    """A child of this process, as a Popen, and the pid of a grandchild."""
    child, grandchild = start_parent()
    yield child, grandchild
    os.kill(grandchild, signal.SIGKILL)
    child.communicate()
