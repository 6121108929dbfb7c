"""The HTTP side of the daemon: it takes connections, answers them, and ends those that idle."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Collection, Iterable, Sequence

from aiohttp import web
from aiohttp.http import HttpProcessingError

from portwatch.errors import PortwatchError
from portwatch.server.middleware import PATIENCE, SlowConnections, host_guard
from portwatch.server.responses import COMMON_HEADERS, error_response
from portwatch.server.sockets import BACKLOG
from portwatch.server.threads import restart_on_failure

log = logging.getLogger("portwatch")

_SHUTDOWN_TIMEOUT = 0.3
"""Seconds for answers under way when we end."""


class Connection(web.RequestHandler):
    """Aiohttp's: the log says nothing of what anybody may send, and the answer nothing of our mistakes."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no request, and where a handler failed."""
        if isinstance(exc, ConnectionError):  # whoever asked has gone
            raise exc
        if isinstance(exc, HttpProcessingError):
            refused = error_response(
                status, "this is no request that can be read", " ".join((message or "").split())
            )
        elif isinstance(exc, PortwatchError):
            refused = error_response(503, str(exc))
        else:
            log.error("%s %s failed", request.method, request.path, exc_info=exc)
            refused = error_response(500, "that went wrong on our side", "the daemon's log says how")
        if request.writer.output_size:
            raise ConnectionResetError("its answer had begun")
        refused.force_close()
        return refused

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sends an answer, if it is an error in our form."""
        if (
            isinstance(resp, web.HTTPException)
            and resp.status >= 400
            and not resp.content_type.endswith("json")
        ):
            kept = {name: value for name, value in resp.headers.items() if name == "Allow"}
            resp = error_response(resp.status, resp.reason, headers=kept)
        return await super().finish_response(request, resp, start_time)


class HttpServer:
    """Answers by these routes, to those who name us by one of `hosts`."""

    def __init__(self, routes: Iterable[web.RouteDef], hosts: Collection[str] = ()) -> None:
        self._slow = SlowConnections()
        app = web.Application(middlewares=[self._slow.note, host_guard(hosts)])
        app.on_response_prepare.append(_add_headers)
        app.add_routes(routes)
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,  # a subscriber that goes is known at once
            shutdown_timeout=_SHUTDOWN_TIMEOUT,
        )
        self._listening: list[asyncio.Server] = []
        self._ending: asyncio.Task[None] | None = None

    async def open(self, sockets: Sequence[socket.socket]) -> None:
        """Begins to answer over these."""
        loop = asyncio.get_running_loop()
        await self._runner.setup()
        server = self._runner.server
        assert server

        def connection() -> Connection:
            return Connection(server, loop=loop, keepalive_timeout=PATIENCE)

        for one in sockets:
            self._listening.append(await loop.create_server(connection, sock=one, backlog=BACKLOG))
        self._ending = loop.create_task(
            restart_on_failure("the end of slow connections", lambda: self._slow.end(server))
        )

    async def close(self) -> None:
        """Ends it, when answers under way have had their moment."""
        for one in self._listening:
            one.close()
        if self._ending:
            self._ending.cancel()
        await self._runner.cleanup()


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(COMMON_HEADERS)
