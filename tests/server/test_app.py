"""How requests are answered, whatever the handlers do and whoever asks."""

import asyncio
import json
import threading
from collections import Counter
from types import SimpleNamespace

import pytest
from aiohttp import web
from http_server import HttpServerThread
from support import PATIENCE, wait_until

from portwatch import PortwatchError
from portwatch.outputs.metrics import Tally
from portwatch.server import middleware
from portwatch.server.routes import metrics
from portwatch.server.threads import Limiter, restart_on_failure, run_in_thread

LARGE = 32 << 20


@pytest.fixture
def serve():
    """Begins to answer by one handler; what began is ended with the test."""
    begun = []

    def begin(handler):
        begun.append(HttpServerThread(lambda _: [web.get("/", handler)]))
        return begun[-1]

    yield begin
    for one in begun:
        one.stop()


def answer_to(client):
    """Status and body."""
    with client, client.makefile("rb") as lines:
        status = int(lines.readline().split()[1])
        while lines.readline() != b"\r\n":
            pass
        return status, json.loads(lines.read())


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (PortwatchError("no more events are read: it ended"), 503, "no more events are read: it ended"),
        (RuntimeError("secret"), 500, "that went wrong on our side"),
        (web.HTTPNotFound(), 404, "Not Found"),
    ],
)
def test_what_a_handler_raises_is_answered_in_the_one_form(serve, error, status, message):
    async def fail(_request):
        raise error

    answered, body = answer_to(serve(fail).ask())
    assert (answered, set(body), body["message"]) == (status, {"message", "detail"}, message)


def test_an_answer_of_which_nobody_takes_anything_is_given_up(serve, monkeypatch):
    monkeypatch.setattr(middleware, "PATIENCE", 0.2)

    async def answer(_request):
        return web.Response(body=bytes(LARGE))

    running = serve(answer)
    with running.ask(small=True) as client:
        assert client.recv(1)
        assert running.connections == 1
        wait_until(lambda: not running.connections, "its end")


def test_scrapes_are_made_one_at_a_time_also_when_scrapers_hang_up():
    at_once, most, go_on = Counter(), [0], threading.Event()

    def view():
        at_once["now"] += 1
        most.append(at_once["now"])
        go_on.wait(PATIENCE)
        at_once["now"] -= 1
        at_once["made"] += 1
        raise PortwatchError("it is over")

    running = HttpServerThread(lambda _: metrics.routes(SimpleNamespace(scrape=view), Tally()))
    for _ in range(5):
        running.ask("/metrics").close()
    last = running.ask("/metrics")
    wait_until(lambda: at_once["now"], "the first")
    go_on.set()
    assert answer_to(last)[0] == 503
    assert max(most) == 1
    running.stop()


def test_the_end_waits_for_no_work_apart():
    hanging, go_on = threading.Event(), threading.Event()

    def hang():
        hanging.set()
        go_on.wait(PATIENCE)

    async def serve():
        limiter = Limiter(1)
        tasks = [asyncio.create_task(limiter.run(hang)) for _ in range(3)]
        assert await run_in_thread(lambda: hanging.wait(PATIENCE))
        return tasks

    asyncio.run(serve())
    assert not go_on.is_set()
    go_on.set()


def test_what_is_to_last_begins_anew_when_it_fails(monkeypatch, caplog):
    monkeypatch.setattr("portwatch.server.threads._PAUSE", 0)
    tries = []

    async def work():
        tries.append(1)
        if len(tries) < 3:
            raise OSError("not now")

    asyncio.run(restart_on_failure("this", work))
    assert len(tries) == 3
    assert caplog.messages == ["this failed, and begins anew"] * 2
