"""Protection that applies to every route: the check of the Host header, and time limits for connections."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Collection

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from portwatch.server.responses import refusal

IDLE_TIMEOUT = 10.0
"""Seconds for a request to arrive, for the client to read some of the response, and until the next request."""


def host_guard(hosts: Collection[str]) -> Middleware:
    """Return a middleware that refuses requests for other hosts (DNS rebinding).

    It accepts IP addresses, localhost, this machine's host name and the names in `hosts`.
    """
    accepted = frozenset(name.lower() for name in (*hosts, "localhost", socket.gethostname()))

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not is_over_socket_file(request) and not _is_accepted(request.headers.get("Host", ""), accepted):
            raise refusal(
                web.HTTPMisdirectedRequest,
                "the Host header does not name this daemon",
                "use an IP address or localhost, or start the daemon with --host NAME",
            )
        return await handler(request)

    return guard


def is_over_socket_file(request: web.Request) -> bool:
    """Return True if the request came over a Unix socket, which only its owner can open."""
    transport = request.transport
    connection = transport.get_extra_info("socket") if transport else None
    return connection is not None and connection.family == socket.AF_UNIX


def _is_accepted(host: str, accepted: Collection[str]) -> bool:
    name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
    name = name.rstrip(".").lower()
    if name in accepted:
        return True
    # DNS rebinding needs a name that the attacker controls: an IP address is safe.
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


class SlowConnections:
    """Closes connections whose first request never arrives, and those that stop reading their response.

    aiohttp limits neither; it limits only the time until the next request (keepalive_timeout). A handler
    that writes to the connection itself, such as the stream's, enforces its own limit.
    """

    def __init__(self) -> None:
        self._has_requested: set[web.RequestHandler] = set()
        self._in_handler: set[web.RequestHandler] = set()
        self._waits: dict[web.RequestHandler, tuple[int, float]] = {}
        """Bytes that each connection has yet to read, and since when that number has not fallen."""

    @web.middleware
    async def track(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Record which connections have sent a request, and which are inside a handler."""
        self._has_requested.add(request.protocol)
        self._in_handler.add(request.protocol)
        try:
            return await handler(request)
        finally:
            self._in_handler.discard(request.protocol)

    async def close_expired(self, server: web.Server) -> None:
        """Close slow connections until cancelled."""
        while True:
            await asyncio.sleep(IDLE_TIMEOUT / 4)
            connections = server.connections
            self._has_requested.intersection_update(connections)
            candidates = [connection for connection in connections if connection not in self._in_handler]
            self._waits = {connection: wait for connection in candidates if (wait := self._wait_of(connection))}
            for connection, (_, since) in self._waits.items():
                if time.monotonic() - since > IDLE_TIMEOUT and connection.transport:
                    connection.transport.abort()

    def _wait_of(self, connection: web.RequestHandler) -> tuple[int, float] | None:
        """Return the entry for `_waits`, or None if the client owes neither a request nor a read."""
        unread = connection.transport.get_write_buffer_size() if connection.transport else 0
        if not unread and connection in self._has_requested:
            return None
        before, since = self._waits.get(connection, (unread, time.monotonic()))
        return (unread, time.monotonic()) if unread < before else (unread, since)
