"""`GET /api/v0/openapi.json`: the OpenAPI description of the API."""

from __future__ import annotations

from importlib import resources

from aiohttp import web

from portwatch.server import params


def routes() -> list[web.RouteDef]:
    """Return the route."""
    return [web.get("/api/v0/openapi.json", _respond)]


async def _respond(request: web.Request) -> web.Response:
    params.only_known(request.query, ())
    text = (resources.files("portwatch.server") / "static" / "openapi.json").read_text("utf-8")
    return web.Response(text=text, content_type="application/json")
