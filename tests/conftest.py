"""What tests of several rooms stand on."""

import os
import shutil

import pytest
from fake_engine import FakeEngine

import portwatch.engines
from portwatch.snapshot import proc_net

TOOLS = {"ip": "iproute2", "ss": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}
"""What the tests against the kernel call, and the packages of Debian and Ubuntu that have it."""


def pytest_configure():
    missing = {tool: package for tool, package in TOOLS.items() if not shutil.which(tool)}
    if missing and os.geteuid() == 0:
        raise pytest.UsageError(
            f"the tests need {', '.join(missing)}: apt-get install {' '.join(sorted({*missing.values()}))}"
        )


@pytest.fixture
def engine(monkeypatch):
    """An engine that does what the test says, under the name "fake"."""
    made = FakeEngine()
    monkeypatch.setattr(proc_net, "read_all", list)  # no kernel, so no list of it
    monkeypatch.setitem(portwatch.engines.ENGINES, "fake", lambda _: made)
    return made
