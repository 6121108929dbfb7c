"""`GET /api/v0/history`: what the journal holds, a page at a time."""

from __future__ import annotations

import json
import time

from aiohttp import web

from portwatch.outputs.journal import Reader
from portwatch.parsing import moment, one_of, port_range
from portwatch.server import query
from portwatch.server.archive import Archive
from portwatch.server.errors import refusal

KINDS = ("open", "close", "bind_failed", "listen_failed", "gap")
PARAMETERS = ("port", "process", "kind", "since", "until", "before", "limit")
MOST = 1000
USUAL = 100


class History:
    """Answers from a journal, if one is kept."""

    def __init__(self, archive: Archive | None) -> None:
        self._archive = archive

    def routes(self) -> list[web.RouteDef]:
        """Where it is found."""
        return [web.get("/api/v0/history", self.respond)]

    async def respond(self, request: web.Request) -> web.Response:
        """The newest events first; `next` is the `before` of the next page, or null."""
        asked = request.query
        query.only_known(asked, PARAMETERS)
        now = time.time_ns()
        since, until = (
            query.values(asked, name, lambda text: moment(text, now)) for name in ("since", "until")
        )
        before = query.number(asked, "before")
        limit = query.number(asked, "limit", USUAL, least=1, most=MOST) or USUAL
        ports = query.values(asked, "port", port_range)
        process = query.values(asked, "process", query.some)
        kind = query.values(asked, "kind", one_of(KINDS))
        if self._archive is None:
            raise refusal(web.HTTPNotFound, "no journal is kept", "start it with --journal PATH")

        def page(reader: Reader) -> str:
            lines = list(
                reader.events(
                    since=max(since, default=None),
                    until=min(until, default=None),
                    before=before,
                    ports=ports,
                    process=process,
                    kind=kind,
                    limit=limit,
                    newest_first=True,
                )
            )
            following = json.loads(lines[-1])["seq"] if len(lines) == limit else None
            return f'{{"events":[{",".join(lines)}],"next":{json.dumps(following)}}}'

        return web.Response(
            text=await self._archive.ask(page),
            content_type="application/json",
            headers={"Cache-Control": "no-store"},
        )
