"""How requests are refused: always as `{"message": ..., "detail": ...}`."""

from __future__ import annotations

import json
from collections.abc import Mapping

from aiohttp import web

COMMON_HEADERS = {
    "Server": "portwatch",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Of every answer: no browser is to guess what it is, or to show it in a frame."""


def refusal(kind: type[web.HTTPError], message: str, detail: str | None = None) -> web.HTTPError:
    """Something to raise, with what is wrong and what would be right."""
    return kind(text=_body(message, detail), content_type="application/json")


def error_response(
    status: int, message: str, detail: str | None = None, headers: Mapping[str, str] | None = None
) -> web.Response:
    """The same as an answer."""
    return web.Response(
        text=_body(message, detail),
        status=status,
        content_type="application/json",
        headers={**COMMON_HEADERS, **(headers or {})},
    )


def json_response(text: str) -> web.Response:
    """Return an answer that is JSON already, and that no cache may keep."""
    return web.Response(text=text, content_type="application/json", headers={"Cache-Control": "no-store"})


def _body(message: str, detail: str | None) -> str:
    return json.dumps({"message": message, "detail": detail})
