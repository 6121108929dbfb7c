"""The choice of an engine, and the errors if no engine can be chosen."""

import errno

import pytest
from fake_engine import FakeEngine

from portwatch.engines import choice
from portwatch.engines.choice import choose
from portwatch.engines.protocol import Options
from portwatch.errors import EngineUnavailable, NotPermitted, WrongUse


def attach(engine):
    engine.attach()


def fail_with(error):
    def fail(_):
        raise error

    return fail


@pytest.fixture
def engines(monkeypatch):
    """The engines "best", which fails to attach, and "other", which works."""
    best, other = FakeEngine(), FakeEngine()
    best.attach = lambda: fail_with(EngineUnavailable("no BTF"))(None)
    monkeypatch.setattr(choice, "ENGINES", {"best": lambda _: best, "other": lambda _: other})
    return best, other


def test_auto_takes_the_first_engine_that_works_and_detaches_the_others(engines):
    best, other = engines
    chosen = choose("auto", Options(), attach)
    assert chosen.engine is other
    assert {name: str(error) for name, error in chosen.refusals.items()} == {"best": "no BTF"}
    assert (best.detached, other.detached) == (1, 0)


@pytest.mark.usefixtures("engines")
def test_if_a_requested_engine_does_not_work_its_error_is_raised():
    with pytest.raises(EngineUnavailable, match=r"^no BTF$"):
        choose("best", Options(), attach)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), PermissionError(1, "no")])
def test_if_an_engine_fails_with_an_os_error_the_exception_advises_to_run_doctor(error):
    kind = NotPermitted if isinstance(error, PermissionError) else EngineUnavailable
    with pytest.raises(kind, match="run portwatch doctor"):
        choose("poll", Options(), fail_with(error))


def test_an_error_about_an_unknown_engine_or_unknown_hooks_lists_the_known_names():
    with pytest.raises(WrongUse, match=r"unknown engine 'nosuch': choose one of auto, core, bcc, poll"):
        choose("nosuch", Options(), attach)
    with pytest.raises(WrongUse, match="unknown hooks 'nosuch': choose one of auto, fentry, stable"):
        choose("auto", Options(hooks="nosuch"), attach)
    with pytest.raises(WrongUse, match="only the core engine"):
        choose("poll", Options(hooks="stable"), attach)
