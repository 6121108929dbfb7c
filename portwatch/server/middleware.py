"""Protection for every route: a check of the Host header, and time limits for slow clients."""

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
"""Seconds that a client may take to send a request, or to read the next part of a response."""


def host_guard(hosts: Collection[str]) -> Middleware:
    """Return a middleware that checks the Host header, as a protection against DNS rebinding.

    It accepts IP addresses, localhost, this machine's host name and the names in `hosts`. Requests over a Unix
    socket are not checked.
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
    """Return True if the request came over a Unix socket, to which only its owner and root can connect."""
    transport = request.transport
    connection = transport.get_extra_info("socket") if transport else None
    return connection is not None and connection.family == socket.AF_UNIX


def _is_accepted(host: str, accepted: Collection[str]) -> bool:
    name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
    name = name.rstrip(".").lower()
    if name in accepted:
        return True
    # DNS rebinding needs a host name that the attacker controls, so an IP address is safe.
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


class SlowConnections:
    """Closes the connection of a client that does not send its first request or stops reading its response.

    aiohttp does not limit the time for either. It limits only the time between two requests
    (keepalive_timeout).

    A connection is not closed while a handler runs for it. A handler that itself writes to the connection, such
    as that of the event stream, enforces its own limit.
    """

    def __init__(self) -> None:
        self._has_requested: set[web.RequestHandler] = set()
        self._in_handler: set[web.RequestHandler] = set()
        self._waits: dict[web.RequestHandler, tuple[int, float]] = {}
        """For each client that must send or read: the number of bytes that it has not read, and the time since
        which this number has not decreased."""

    @web.middleware
    async def track(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Record which connections have sent a request, and which of their requests are being handled."""
        self._has_requested.add(request.protocol)
        self._in_handler.add(request.protocol)
        try:
            return await handler(request)
        finally:
            self._in_handler.discard(request.protocol)

    async def close_expired(self, server: web.Server) -> None:
        """Close slow connections. Run until cancelled."""
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
        """Return the connection's entry in `_waits`, or None if nothing is expected of the client."""
        unread = connection.transport.get_write_buffer_size() if connection.transport else 0
        if not unread and connection in self._has_requested:
            return None
        before, since = self._waits.get(connection, (unread, time.monotonic()))
        return (unread, time.monotonic()) if unread < before else (unread, since)
