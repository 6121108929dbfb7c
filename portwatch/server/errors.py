"""How requests are refused: always as `{"message": ..., "detail": ...}`."""

from __future__ import annotations

import json
from collections.abc import Mapping

from aiohttp import web

HEADERS = {
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


def answer(
    status: int, message: str, detail: str | None = None, headers: Mapping[str, str] | None = None
) -> web.Response:
    """The same as an answer."""
    return web.Response(
        text=_body(message, detail),
        status=status,
        content_type="application/json",
        headers={**HEADERS, **(headers or {})},
    )


def _body(message: str, detail: str | None) -> str:
    return json.dumps({"message": message, "detail": detail})
