"""What programs ask for: `/api/v0` and the two questions after our health."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from typing import Any, Protocol

from aiohttp import web

from portwatch.ancestry import with_background
from portwatch.errors import PortwatchError
from portwatch.model import Listener
from portwatch.only import Only
from portwatch.server import query
from portwatch.server.beside import Turns
from portwatch.server.errors import refusal
from portwatch.server.guard import is_over_socket_file
from portwatch.tree import of_trees

_PIDS_NAMES = ("pid", "not_pid")
LISTING_PARAMETERS = (*query.SCOPE_NAMES, *_PIDS_NAMES, "min_port", "ignore")
WHO_PARAMETERS = (*query.SCOPE_NAMES, *_PIDS_NAMES)
_LAST_PID = 1 << 22
_AT_ONCE = 4
_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")
"""What a proxy adds, behind which anybody may be."""


class Known(Protocol):
    """What the daemon knows."""

    def listeners(self, *, look: bool = False) -> Iterator[Listener]:
        """What is open now; with a `look`, its holders, too. Waits a moment: not for the loop's thread."""

    def state(self) -> dict[str, Any]:
        """How it does: `ready`, and why not, the engine, what is degraded."""

    @property
    def last_seq(self) -> int:
        """The newest event's."""

    @property
    def kept_after(self) -> int:
        """The least `after` that the stream answers from memory."""


class Api:
    """Its handlers."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._turns = Turns(_AT_ONCE)

    def routes(self) -> list[web.RouteDef]:
        """Where they are found."""
        return [
            web.get("/api/v0/listening-ports", self.listening_ports),
            web.get("/api/v0/who", self.who),
            web.get("/api/v0/openapi.json", self.openapi),
            web.get("/healthz", self.alive),
            web.get("/readyz", self.ready),
        ]

    async def listening_ports(self, request: web.Request) -> web.Response:
        """What is open now; `seq` is where the stream goes on from it."""
        query.only_known(request.query, LISTING_PARAMETERS)
        scope = query.scope_of(request.query)
        least = query.number(request.query, "min_port", 0, most=65_535) or 0
        ignored = frozenset(query.values(request.query, "ignore", _port))
        pids = _pids_of(request)

        def listing() -> str:
            seq = self._known.last_seq
            ports = [
                _entry(one.as_dict())
                for one in self._listeners(pids)
                if one.socket.port >= least and one.socket.port not in ignored and scope.admits_listener(one)
            ]
            answer = {"ports": ports, "seq": seq, "kept_after": self._known.kept_after}
            return json.dumps(answer, separators=(",", ":"))

        return await self._answer(listing)

    async def who(self, request: web.Request) -> web.Response:
        """The same at length: how each holder was called, and whom it descends from."""
        query.only_known(request.query, WHO_PARAMETERS)
        if "port" not in request.query:
            raise refusal(web.HTTPBadRequest, "port is missing: which one is meant?", "for example ?port=8080")
        scope = query.scope_of(request.query)
        pids = _pids_of(request)
        shows_command = _is_from_here(request)

        def listing() -> str:
            found = (one for one in self._listeners(pids, look=True) if scope.admits_listener(one))
            ports = [_entry(with_background(one, commands=shows_command)) for one in found]
            return json.dumps({"ports": ports}, separators=(",", ":"))

        return await self._answer(listing)

    async def openapi(self, request: web.Request) -> web.Response:
        """The description of all this."""
        query.only_known(request.query, ())
        text = resources.files("portwatch.server").joinpath("openapi.json").read_text("utf-8")
        return web.Response(text=text, content_type="application/json")

    async def alive(self, request: web.Request) -> web.Response:
        """That we answer at all."""
        query.only_known(request.query, ())
        return web.json_response({"status": "ok"})

    async def ready(self, request: web.Request) -> web.Response:
        """Whether what we say can be relied on, and what is degraded."""
        query.only_known(request.query, ())
        state = self._known.state()
        return web.json_response(state, status=200 if state["ready"] else 503)

    def _listeners(self, pids: Only[int], *, look: bool = False) -> Iterable[Listener]:
        """What is open; with pids, by what their trees hold now."""
        asks_for_trees = pids != Only()
        listeners = self._known.listeners(look=look or asks_for_trees)
        if not asks_for_trees:
            return listeners
        try:
            return of_trees(pids, listeners, self._known.state()["engine"])
        except PortwatchError as error:
            raise refusal(web.HTTPNotFound, str(error)) from None

    async def _answer(self, listing: Callable[[], str]) -> web.Response:
        if not self._known.state()["ready"]:
            raise refusal(web.HTTPServiceUnavailable, "not ready yet: what is open is still being looked up")
        # Not on the loop: 10,000 listeners are a third of a second.
        return web.Response(
            text=await self._turns.do(listing),
            content_type="application/json",
            headers={"Cache-Control": "no-store"},
        )


def _entry(listener: dict[str, Any]) -> dict[str, Any]:
    return {
        "process_name": listener["process"],
        "network": listener["proto"],
        **listener,
    }


def _pids_of(request: web.Request) -> Only[int]:
    wanted, unwanted = (query.values(request.query, name, _pid) for name in _PIDS_NAMES)
    return Only(wanted, unwanted)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 0 < int(text) <= 65_535):
        raise ValueError(f"{text!r} is no port")
    return int(text)


def _pid(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 7 and 0 < int(text) <= _LAST_PID):
        raise ValueError(f"{text!r} is no pid")
    return int(text)


def _is_from_here(request: web.Request) -> bool:
    """Arguments may hold what is nobody else's business: they are shown where /proc shows them, too."""
    if is_over_socket_file(request):
        return True
    remote = request.remote or ""
    is_forwarded = any(name in request.headers for name in _FORWARDED)
    return not is_forwarded and (remote.startswith("127.") or remote == "::1")
