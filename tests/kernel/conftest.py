"""Fixtures for tests that open real sockets. Most tests run once for each engine in PORTWATCH_TEST_ENGINES."""

import os
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from support import ENGINE_NAMES, ENGINES, Actor, RecordingWatcher

from portwatch.engines.bcc.compiler import DIST_PACKAGES
from portwatch.linux.mounts import mounts


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/kernel" in str(item.path) and (reason := _reason_to_skip(item)):
            item.add_marker(pytest.mark.skip(reason=reason))


def _reason_to_skip(item):
    if os.geteuid() != 0:
        return "needs root for BPF and network namespaces"
    if "bcc" not in item.nodeid:
        return None
    if "bcc" not in ENGINES:
        return "bcc is not one of PORTWATCH_TEST_ENGINES"
    # Search for bcc without importing it. If it is installed but broken, the tests must fail, not be skipped.
    return None if PathFinder.find_spec("bcc", DIST_PACKAGES) else "needs bcc (make setup-bcc)"


@pytest.fixture(scope="module", params=ENGINES)
def module_watch(request, record_testsuite_property):
    """A watcher that all tests of a module share."""
    watcher = RecordingWatcher(request.param)
    limited_rows = {row for limit in watcher.info.limits for row in limit.scenarios}
    record_testsuite_property("kernel", os.uname().release)
    record_testsuite_property(f"limited on {request.param}", " ".join(sorted(limited_rows)))
    yield watcher
    watcher.stop()


@pytest.fixture
def watch(module_watch):
    """The module's watcher.

    After each test, the fixture waits until all events of the test are delivered, so that no event of a test
    reaches the next test.
    """
    yield module_watch
    module_watch.wait_for_delivery()


@pytest.fixture(params=ENGINE_NAMES)
def engine(request):
    """The command-line option that selects an engine."""
    return ["--engine", request.param]


@pytest.fixture
def make_actor():
    """A function that starts actors (see `support.Actor`). They are killed at the end of the test."""
    actors = []

    def make(*arguments, **options):
        actors.append(Actor(*arguments, **options))
        return actors[-1]

    yield make
    for actor in actors:
        actor.close()


@pytest.fixture
def actor(make_actor):
    return make_actor()


@pytest.fixture
def make_cgroup():
    """A function that makes a cgroup directly below the root of cgroup v2 and moves actors into it."""
    mount = next((mount.point for mount in mounts() if mount.kind == "cgroup2"), None)
    if not mount:
        pytest.skip("no cgroup v2 is mounted")
    cgroups = []

    def make(name, *actors):
        path = Path(mount) / name
        path.mkdir()
        cgroups.append(path)
        for actor in actors:
            (path / "cgroup.procs").write_text(str(actor.pid))
        return path

    yield make
    for path in filter(Path.exists, cgroups):
        for pid in (path / "cgroup.procs").read_text().split():
            (path.parent / "cgroup.procs").write_text(pid)
        path.rmdir()
