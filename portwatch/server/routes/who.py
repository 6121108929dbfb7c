"""`GET /api/v0/who`: everything known about a port and its holders."""

from __future__ import annotations

import json

from aiohttp import web

from portwatch.linux.ancestry import listener_with_details
from portwatch.server import params
from portwatch.server.listings import PARAMETERS, Listings, pids_of, port_entry
from portwatch.server.middleware import is_over_socket_file
from portwatch.server.responses import refusal

_PROXY_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")


def routes(listings: Listings) -> list[web.RouteDef]:
    """Return the route."""

    async def respond(request: web.Request) -> web.Response:
        params.only_known(request.query, PARAMETERS)
        if "port" not in request.query:
            raise refusal(web.HTTPBadRequest, "the parameter port is missing", "add for example ?port=8080")
        scope = params.scope_of(request.query)
        pids = pids_of(request)
        shows_commands = _is_local(request)

        def build() -> str:
            ports = [
                port_entry(listener_with_details(listener, commands=shows_commands))
                for listener in listings.listeners(pids, refresh=True)
                if scope.admits_listener(listener)
            ]
            return json.dumps({"ports": ports}, separators=(",", ":"))

        return await listings.respond(build)

    return [web.get("/api/v0/who", respond)]


def _is_local(request: web.Request) -> bool:
    """Return True if the client is on this machine and is not a proxy.

    Only such clients are sent command lines, because command lines may contain secrets.
    """
    if is_over_socket_file(request):
        return True
    remote = request.remote or ""
    is_proxied = any(name in request.headers for name in _PROXY_HEADERS)
    return not is_proxied and (remote.startswith("127.") or remote == "::1")
