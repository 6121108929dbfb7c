"""Server-sent events: every event to all subscribers, none of which can delay another."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from functools import partial

from aiohttp import web
from aiohttp.http import HttpVersion11

from portwatch.errors import JournalError
from portwatch.event import Event
from portwatch.filters.scope import Scope
from portwatch.outputs.journal import Reader
from portwatch.server.journal_queries import JournalQueries
from portwatch.server.recent import Recent, frame_of
from portwatch.server.responses import refusal

log = logging.getLogger("portwatch")

HEARTBEAT = 15.0
"""Seconds without an event after which a comment is sent."""
SUBSCRIBERS_MAX = 4096
_UNREAD_MAX = 256 << 10
"""Bytes that a subscriber may leave unread before it is sent no more."""
_PATIENCE = 60.0
"""Seconds after which a subscriber that still reads nothing is disconnected."""
_RETRY_INTERVAL = 0.05
"""Seconds until subscribers that are behind are tried again."""
_REPLAY_ROWS = 500
"""Journal rows of one query."""


@dataclass(slots=True, eq=False)
class _Subscriber:
    transport: asyncio.Transport
    scope: Scope | None
    """None for every event."""
    is_chunked: bool
    ended: asyncio.Event
    position: int | None = None
    """The next event to send. None while older events are sent from the journal."""
    stalled_since: float | None = None


class Stream:
    """Keeps the newest events and sends each to all subscribers.

    A subscriber is a connection and a position among the kept events. It has no queue that could grow. All
    events since the last turn go out in one write, the same bytes for every subscriber without a scope
    (bench/bench_stream.py: 1,000 subscribers).

    Everything but `publish` runs in the event loop's thread.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, first_seq: int = 1, journal: JournalQueries | None = None
    ) -> None:
        self.missed = 0
        """Events that slow subscribers without a scope missed. Others may not have wanted them."""
        self._loop = loop
        self._journal = journal
        self._recent = Recent()
        self._recent.dropped_seq = first_seq - 1
        self._inbox: deque[Event] = deque()
        self._subscribers: set[_Subscriber] = set()
        self._is_scheduled = False
        """True while a call of `_read_inbox` is due."""
        self._retry_timer: asyncio.TimerHandle | None = None

    @property
    def subscribers(self) -> int:
        """The number of subscribers."""
        return len(self._subscribers)

    @property
    def last_seq(self) -> int:
        """The seq of the newest event."""
        return self._recent.last_seq

    @property
    def kept_after(self) -> int:
        """The smallest `after` that can be answered from memory."""
        return self._recent.dropped_seq

    def publish(self, event: Event) -> None:
        """Add an event. Never blocks. Any thread may call it."""
        # Append first: if a call is due, it clears the flag before it reads the inbox, and finds the event.
        self._inbox.append(event)
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon_threadsafe(self._read_inbox)

    def close(self) -> None:
        """End every subscription."""
        for subscriber in self._subscribers:
            subscriber.ended.set()

    async def follow(self, request: web.Request, scope: Scope | None, after: int | None) -> web.StreamResponse:
        """Send a subscriber what it missed after `after`, then every event that passes its scope."""
        if self.subscribers >= SUBSCRIBERS_MAX:
            raise refusal(
                web.HTTPServiceUnavailable,
                f"there are too many subscribers: {SUBSCRIBERS_MAX}",
                "try again when one has disconnected",
            )
        if request.transport is None:
            raise ConnectionResetError("the subscriber has disconnected")
        is_chunked = request.version >= HttpVersion11
        subscriber = _Subscriber(request.transport, scope, is_chunked, asyncio.Event())
        self._subscribers.add(subscriber)
        try:
            return await self._follow(request, subscriber, after)
        finally:
            self._subscribers.discard(subscriber)

    async def _follow(
        self, request: web.Request, subscriber: _Subscriber, after: int | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
            }
        )
        if subscriber.is_chunked:
            response.enable_chunked_encoding()
        now = self._recent.end
        await response.prepare(request)
        await _send(response, subscriber, b"retry: 1000\n\n")
        subscriber.position = now if after is None else await self._catch_up(response, subscriber, after)
        if self._send_pending(subscriber, {}):
            self._schedule_retry()
        while not subscriber.ended.is_set():
            try:
                await asyncio.wait_for(subscriber.ended.wait(), HEARTBEAT)
            except asyncio.TimeoutError:
                self._write(subscriber, b":\n\n")
        return response

    async def _catch_up(self, response: web.StreamResponse, subscriber: _Subscriber, after: int) -> int:
        """Return the position to continue at. First send what is only in the journal, or else a gap."""
        position = self._recent.position_after(after)
        if position is not None:
            return position
        if self._journal:
            try:
                position = await self._replay(self._journal, response, subscriber, after)
            except JournalError as error:
                log.warning("cannot send a subscriber the events that it missed: %s", error)
        if position is not None:
            return position
        end = self._recent.end
        # The gap has the id of the newest event: a subscriber that reconnects now continues behind it.
        await _send(response, subscriber, _gap_frame(self.last_seq, None))
        return end

    async def _replay(
        self, journal: JournalQueries, response: web.StreamResponse, subscriber: _Subscriber, after: int
    ) -> int | None:
        """Send journal events until those in memory follow. Return None if the journal does not reach them."""
        if not await journal.ask(lambda reader: reader.has(after)):
            return None
        while (position := self._recent.position_after(after)) is None:
            events = await journal.ask(partial(_events_after, after))
            if not events:
                return None
            after = events[-1].seq
            scope = subscriber.scope
            frames = (frame_of(event) for event in events if scope is None or scope.admits(event))
            await _send(response, subscriber, b"".join(frames))
        return position

    def _read_inbox(self) -> None:
        self._is_scheduled = False
        while self._inbox:
            self._recent.append(self._inbox.popleft())
        self._send_pending_to_all()

    def _send_pending_to_all(self) -> None:
        shared: dict[int, tuple[bytes, int]] = {}
        is_any_behind = False
        for subscriber in tuple(self._subscribers):
            is_any_behind |= self._send_pending(subscriber, shared)
        if is_any_behind:
            self._schedule_retry()

    def _schedule_retry(self) -> None:
        """Schedule a retry. There is one timer, however many subscribers are behind."""
        if self._retry_timer is None:
            self._retry_timer = self._loop.call_later(_RETRY_INTERVAL, self._retry)

    def _retry(self) -> None:
        self._retry_timer = None
        self._send_pending_to_all()

    def _send_pending(self, subscriber: _Subscriber, shared: dict[int, tuple[bytes, int]]) -> bool:
        """Send what a subscriber lacks. Return True if it must be tried again, as it does not read now.

        `shared` maps a position to the chunk from there on, for all subscribers without a scope.
        """
        recent = self._recent
        while (
            subscriber.position is not None
            and subscriber.position < recent.end
            and not subscriber.ended.is_set()
        ):
            if subscriber.transport.get_write_buffer_size() > _UNREAD_MAX:
                return self._keeps_waiting_for(subscriber)
            subscriber.stalled_since = None
            if subscriber.position < recent.first:
                self._write(subscriber, _gap_frame(recent.dropped_seq, self._count_missed(subscriber)))
                subscriber.position = recent.first
            if subscriber.scope is not None:
                chunk, subscriber.position = recent.chunk_at(subscriber.position, subscriber.scope)
            else:
                if subscriber.position not in shared:
                    shared[subscriber.position] = recent.chunk_at(subscriber.position, None)
                chunk, subscriber.position = shared[subscriber.position]
            if chunk:
                self._write(subscriber, chunk)
        return False

    def _count_missed(self, subscriber: _Subscriber) -> int | None:
        """Count and return the missed events, or None if the subscriber has a scope and may not want all."""
        if subscriber.scope is not None or subscriber.position is None:
            return None
        missed = self._recent.first - subscriber.position
        self.missed += missed
        return missed

    def _keeps_waiting_for(self, subscriber: _Subscriber) -> bool:
        """Return False after disconnecting a subscriber that has read nothing for too long."""
        now = time.monotonic()
        subscriber.stalled_since = subscriber.stalled_since or now
        if now - subscriber.stalled_since > _PATIENCE:
            subscriber.transport.abort()
            subscriber.ended.set()
            return False
        return True

    def _write(self, subscriber: _Subscriber, data: bytes) -> None:
        if subscriber.transport.is_closing():
            subscriber.ended.set()
        elif subscriber.is_chunked:
            # StreamResponse.write is a coroutine, and would drain once for each subscriber and write.
            subscriber.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            subscriber.transport.write(data)


async def _send(response: web.StreamResponse, subscriber: _Subscriber, data: bytes) -> None:
    """Write and drain. Disconnect a subscriber that reads nothing for too long."""
    try:
        await asyncio.wait_for(response.write(data), _PATIENCE)
    except asyncio.TimeoutError:
        subscriber.transport.abort()
        raise ConnectionResetError("the subscriber reads nothing") from None


def _gap_frame(seq: int, lost: int | None) -> bytes:
    return frame_of(Event(seq, time.time_ns(), "gap", "reconcile", lost=lost))


def _events_after(seq: int, reader: Reader) -> list[Event]:
    return [reader.event(line) for line in reader.events(after=seq, limit=_REPLAY_ROWS)]
