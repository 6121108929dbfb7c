"""`GET /api/v0/listening-ports`: the open ports."""

from __future__ import annotations

import json

from aiohttp import web

from portwatch.server import params
from portwatch.server.listings import PARAMETERS, Listings, pids_of, port_entry
from portwatch.server.state import DaemonState


def routes(state: DaemonState, listings: Listings) -> list[web.RouteDef]:
    """Return the route."""

    async def respond(request: web.Request) -> web.Response:
        params.only_known(request.query, (*PARAMETERS, "min_port", "ignore"))
        scope = params.scope_of(request.query)
        min_port = params.number(request.query, "min_port", 0, maximum=65_535) or 0
        ignored = frozenset(params.values(request.query, "ignore", params.port))
        pids = pids_of(request)

        def build() -> str:
            seq = state.last_seq  # read before the listing, so that a stream after this seq misses no event
            ports = [
                port_entry(listener.as_dict())
                for listener in listings.listeners(pids)
                if listener.port >= min_port
                and listener.port not in ignored
                and scope.admits_listener(listener)
            ]
            body = {"ports": ports, "seq": seq, "kept_after": state.kept_after}
            return json.dumps(body, separators=(",", ":"))

        return await listings.respond(build)

    return [web.get("/api/v0/listening-ports", respond)]
