"""`GET /`: the web page, a single file that loads nothing from other servers."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

from aiohttp import web

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def routes() -> list[web.RouteDef]:
    """Return the route.

    Its Content-Security-Policy has hashes that allow only the page's own script and style.
    """
    text = (resources.files("portwatch.server") / "static" / "page.html").read_text("utf-8")
    hashes = " ".join(f"{kind}-src '{_hash_of(content)}';" for kind, content in _INLINE.findall(text))
    policy = (
        f"default-src 'none'; {hashes} connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )

    async def respond(_request: web.Request) -> web.Response:
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
        return web.Response(text=text, content_type="text/html", headers=headers)

    return [web.get("/", respond)]


def _hash_of(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
