"""`GET /api/v0/history`: events from the journal, one page at a time."""

from __future__ import annotations

import json
import time

from aiohttp import web

from portwatch.event import EVENT_KINDS
from portwatch.filters.parsing import one_of, parse_time, port_range
from portwatch.outputs.journal import Reader
from portwatch.server import params
from portwatch.server.journal_queries import JournalQueries
from portwatch.server.responses import json_response, refusal

PARAMETERS = ("port", "process", "kind", "since", "until", "before", "limit")
_MAX_LIMIT = 1000
_DEFAULT_LIMIT = 100


def routes(journal: JournalQueries | None) -> list[web.RouteDef]:
    """Return the route. It answers 404 if there is no journal."""

    async def respond(request: web.Request) -> web.Response:
        """Return a page of events, newest first.

        Its `next` is the value of `before` for the following page, or null on the last page.
        """
        query = request.query
        params.only_known(query, PARAMETERS)
        now = time.time_ns()
        since, until = (
            params.values(query, name, lambda text: parse_time(text, now)) for name in ("since", "until")
        )
        before = params.number(query, "before")
        limit = params.number(query, "limit", _DEFAULT_LIMIT, minimum=1, maximum=_MAX_LIMIT) or _DEFAULT_LIMIT
        ports = params.values(query, "port", port_range)
        process = params.values(query, "process", params.non_empty)
        kind = params.values(query, "kind", one_of(EVENT_KINDS))
        if journal is None:
            raise refusal(
                web.HTTPNotFound, "this daemon keeps no journal", "start the daemon with --journal PATH"
            )

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
            next_before = json.loads(lines[-1])["seq"] if len(lines) == limit else None
            return f'{{"events":[{",".join(lines)}],"next":{json.dumps(next_before)}}}'

        return json_response(await journal.ask(page))

    return [web.get("/api/v0/history", respond)]
