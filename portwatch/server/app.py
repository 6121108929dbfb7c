"""The HTTP server: accepts connections, dispatches requests and closes idle connections."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Collection, Iterable, Sequence

from aiohttp import web
from aiohttp.http import HttpProcessingError

from portwatch.errors import PortwatchError
from portwatch.server.middleware import IDLE_TIMEOUT, SlowConnections, host_guard
from portwatch.server.responses import COMMON_HEADERS, error_response
from portwatch.server.sockets import BACKLOG
from portwatch.server.threads import restart_on_failure

log = logging.getLogger("portwatch")

_SHUTDOWN_TIMEOUT = 0.3
"""Seconds that unfinished responses get when the server stops."""


class Connection(web.RequestHandler):
    """aiohttp's connection, with every error as JSON.

    Malformed requests are not logged: any client could fill the log. Tracebacks are logged, never sent.
    """

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the response to a malformed request or to an exception that a handler raised."""
        if isinstance(exc, ConnectionError):  # the client has disconnected
            raise exc
        if isinstance(exc, HttpProcessingError):
            response = error_response(status, "the request cannot be parsed", " ".join((message or "").split()))
        elif isinstance(exc, PortwatchError):
            response = error_response(503, str(exc))
        else:
            log.error("%s %s failed", request.method, request.path, exc_info=exc)
            response = error_response(500, "internal error", "see the daemon's log")
        if request.writer.output_size:
            raise ConnectionResetError("part of the response is already sent")
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send a response. Replace aiohttp's own plain-text errors, such as 404 and 405, by JSON."""
        if (
            isinstance(resp, web.HTTPException)
            and resp.status >= 400
            and not resp.content_type.endswith("json")
        ):
            headers = {name: value for name, value in resp.headers.items() if name == "Allow"}
            resp = error_response(resp.status, resp.reason, headers=headers)
        return await super().finish_response(request, resp, start_time)


class HttpServer:
    """Serves `routes` to requests whose Host header names this machine or is one of `hosts`."""

    def __init__(self, routes: Iterable[web.RouteDef], hosts: Collection[str] = ()) -> None:
        self._slow = SlowConnections()
        app = web.Application(middlewares=[self._slow.track, host_guard(hosts)])
        app.on_response_prepare.append(_add_headers)
        app.add_routes(routes)
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,  # a subscriber that disconnects is removed at once
            shutdown_timeout=_SHUTDOWN_TIMEOUT,
        )
        self._servers: list[asyncio.Server] = []
        self._closing_slow: asyncio.Task[None] | None = None

    async def open(self, sockets: Sequence[socket.socket]) -> None:
        """Start to accept connections on listening sockets."""
        loop = asyncio.get_running_loop()
        await self._runner.setup()
        server = self._runner.server
        assert server

        def connection() -> Connection:
            return Connection(server, loop=loop, keepalive_timeout=IDLE_TIMEOUT)

        for listening in sockets:
            self._servers.append(await loop.create_server(connection, sock=listening, backlog=BACKLOG))
        self._closing_slow = loop.create_task(
            restart_on_failure("closing slow connections", lambda: self._slow.close_expired(server))
        )

    async def close(self) -> None:
        """Stop accepting, and give unfinished responses a moment."""
        for server in self._servers:
            server.close()
        if self._closing_slow:
            self._closing_slow.cancel()
        await self._runner.cleanup()


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(COMMON_HEADERS)
