"""What tests of several rooms stand on."""

import pytest
from fake_engine import FakeEngine

import portwatch.engines
from portwatch.snapshot import procnet


@pytest.fixture
def engine(monkeypatch):
    """An engine that does what the test says, under the name "fake"."""
    made = FakeEngine()
    monkeypatch.setattr(procnet, "read_all", list)  # no kernel, so no list of it
    monkeypatch.setitem(portwatch.engines.ENGINES, "fake", lambda _: made)
    return made
