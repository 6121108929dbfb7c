"""Every test here drives real sockets, on each engine that runs on this kernel."""

import os
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from support import ENGINE_NAMES, ENGINES, Actor, Watch

from portwatch.engines.bcc.compiler import DIST_PACKAGES
from portwatch.linux.mounts import mounts


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/kernel" in str(item.path) and (reason := _unable_to_run(item)):
            item.add_marker(pytest.mark.skip(reason=reason))


def _unable_to_run(item):
    if os.geteuid() != 0:
        return "needs root: BPF, and network namespaces"
    if "bcc" not in item.nodeid:
        return None
    if "bcc" not in ENGINES:
        return "bcc is not one of PORTWATCH_TEST_ENGINES"
    # If it is there and broken, that is for the tests to say.
    return None if PathFinder.find_spec("bcc", DIST_PACKAGES) else "needs bcc: make setup-bcc"


@pytest.fixture(scope="module", params=ENGINES)
def running(request, record_testsuite_property):
    """A watcher that has been running for a while, as in life."""
    made = Watch(request.param)
    limited = {row for limit in made.info.limits for row in limit.scenarios}
    record_testsuite_property("kernel", os.uname().release)
    record_testsuite_property(f"limited on {request.param}", " ".join(sorted(limited)))
    yield made
    made.stop()


@pytest.fixture
def watch(running):
    """The same, for one test; what the test left open is told before the next one begins."""
    yield running
    running.settle()


@pytest.fixture(params=ENGINE_NAMES)
def engine(request):
    """The option that selects an engine."""
    return ["--engine", request.param]


@pytest.fixture
def make_actor():
    made = []

    def make(*arguments, **options):
        made.append(Actor(*arguments, **options))
        return made[-1]

    yield make
    for actor in made:
        actor.close()


@pytest.fixture
def actor(make_actor):
    return make_actor()


@pytest.fixture
def make_cgroup():
    """Cgroups in the root of v2, whatever they are called."""
    mount = next((mount.point for mount in mounts() if mount.kind == "cgroup2"), None)
    if not mount:
        pytest.skip("no cgroup v2 is mounted")
    made = []

    def make(name, *actors):
        path = Path(mount) / name
        path.mkdir()
        made.append(path)
        for actor in actors:
            (path / "cgroup.procs").write_text(str(actor.pid))
        return path

    yield make
    for path in filter(Path.exists, made):
        for pid in (path / "cgroup.procs").read_text().split():
            (path.parent / "cgroup.procs").write_text(pid)
        path.rmdir()
