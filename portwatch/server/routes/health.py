"""`GET /healthz`: liveness. `GET /readyz`: readiness, the engine and its limits, and what does not work."""

from __future__ import annotations

from aiohttp import web

from portwatch.server import params
from portwatch.server.state import DaemonState


def routes(state: DaemonState) -> list[web.RouteDef]:
    """Return the routes."""

    async def health(request: web.Request) -> web.Response:
        params.only_known(request.query, ())
        return web.json_response({"status": "ok"})

    async def readiness(request: web.Request) -> web.Response:
        params.only_known(request.query, ())
        body = state.readiness()
        return web.json_response(body, status=200 if body["ready"] else 503)

    return [web.get("/healthz", health), web.get("/readyz", readiness)]
