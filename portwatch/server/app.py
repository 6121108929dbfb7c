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
"""How many seconds a stopping server waits for unfinished responses."""


class Connection(web.RequestHandler):
    """An aiohttp connection that sends every error as JSON.

    Malformed requests are not logged, because any client could fill the log with them. Tracebacks are logged
    but never sent to the client.
    """

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the error response for a malformed request or for an exception raised by a handler."""
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
        """Send a response. Replace aiohttp's plain-text errors, such as 404 and 405, with JSON errors."""
        if (
            isinstance(resp, web.HTTPException)
            and resp.status >= 400
            and not resp.content_type.endswith("json")
        ):
            headers = {name: value for name, value in resp.headers.items() if name == "Allow"}
            resp = error_response(resp.status, resp.reason, headers=headers)
        return await super().finish_response(request, resp, start_time)


class HttpServer:
    """Serves `routes`. Refuses requests whose Host header names neither this machine nor one of `hosts`."""

    def __init__(self, routes: Iterable[web.RouteDef], hosts: Collection[str] = ()) -> None:
        self._slow_connections = SlowConnections()
        app = web.Application(middlewares=[self._slow_connections.track, host_guard(hosts)])
        app.on_response_prepare.append(_add_headers)
        app.add_routes(routes)
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,  # removes a subscriber as soon as it disconnects
            shutdown_timeout=_SHUTDOWN_TIMEOUT,
        )
        self._servers: list[asyncio.Server] = []
        self._slow_connections_task: asyncio.Task[None] | None = None

    async def open(self, sockets: Sequence[socket.socket]) -> None:
        """Accept connections on these listening sockets."""
        loop = asyncio.get_running_loop()
        await self._runner.setup()
        server = self._runner.server
        assert server

        def connection() -> Connection:
            return Connection(server, loop=loop, keepalive_timeout=IDLE_TIMEOUT)

        for listening in sockets:
            self._servers.append(await loop.create_server(connection, sock=listening, backlog=BACKLOG))
        self._slow_connections_task = loop.create_task(
            restart_on_failure("closing slow connections", lambda: self._slow_connections.close_expired(server))
        )

    async def close(self) -> None:
        """Stop accepting connections, and wait briefly for unfinished responses."""
        for server in self._servers:
            server.close()
        if self._slow_connections_task:
            self._slow_connections_task.cancel()
        await self._runner.cleanup()


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(COMMON_HEADERS)
