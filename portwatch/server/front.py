"""The daemon's side of HTTP: takes connections, and ends those over which nothing comes or goes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection, Iterable, Sequence

from aiohttp import web

from portwatch.server.address import BACKLOG
from portwatch.server.beside import lasting
from portwatch.server.connection import Connection
from portwatch.server.errors import HEADERS
from portwatch.server.guard import guard
from portwatch.server.slow import PATIENCE, SlowConnections

_LAST_ANSWERS = 0.3
"""Seconds for answers under way when we end."""


class Front:
    """Answers by these routes, to those who name us by one of `hosts`."""

    def __init__(self, routes: Iterable[web.RouteDef], hosts: Collection[str] = ()) -> None:
        self._slow = SlowConnections()
        app = web.Application(middlewares=[self._slow.note, guard(hosts)])
        app.on_response_prepare.append(_add_headers)
        app.add_routes(routes)
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,  # a subscriber that goes is known at once
            shutdown_timeout=_LAST_ANSWERS,
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
        self._ending = loop.create_task(lasting("the end of slow connections", lambda: self._slow.end(server)))

    async def close(self) -> None:
        """Ends it, when answers under way have had their moment."""
        for one in self._listening:
            one.close()
        if self._ending:
            self._ending.cancel()
        await self._runner.cleanup()


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
