"""The event stream, as server-sent events. No subscriber can delay another."""

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
"""Seconds between two comment lines, which show the client that the connection works."""
SUBSCRIBERS_MAX = 4096
_UNREAD_MAX = 256 << 10
"""If a subscriber has more unread bytes than this, it is sent nothing until it has read some of them."""
_PATIENCE = 60.0
"""Seconds after which a subscriber with too many unread bytes is disconnected if it reads none of them."""
_RETRY_INTERVAL = 0.05
"""Seconds until the next attempt to send to subscribers that have too many unread bytes."""
_REPLAY_ROWS = 500
"""Maximum number of events that one query reads from the journal."""


@dataclass(slots=True, eq=False)
class _Subscriber:
    transport: asyncio.Transport
    scope: Scope | None
    """None if the subscriber receives every event."""
    is_chunked: bool
    ended: asyncio.Event
    position: int | None = None
    """The position of the next event to send. None while older events are sent from the journal."""
    stalled_since: float | None = None


class Stream:
    """Keeps the newest events in memory and sends each event to all subscribers.

    A subscriber is a connection and a position among the kept events, so a subscriber has no queue of its own
    that could grow. Several pending events are sent in one write. Subscribers without a scope are sent the same
    bytes object, which makes 1,000 subscribers possible (bench/bench_stream.py).

    Any thread may call `publish`. Everything else runs in the event loop's thread.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, first_seq: int = 1, journal: JournalQueries | None = None
    ) -> None:
        self.missed = 0
        """Events missed by slow subscribers that have no scope. Those with a scope are not counted."""
        self._loop = loop
        self._queries = journal
        self._recent = Recent()
        self._recent.evicted_seq = first_seq - 1
        self._inbox: deque[Event] = deque()
        self._subscribers: set[_Subscriber] = set()
        self._is_scheduled = False
        """True while a call of `_read_inbox` is scheduled."""
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
        """The lowest seq after which every event is still in memory."""
        return self._recent.evicted_seq

    def publish(self, event: Event) -> None:
        """Add an event. Never blocks."""
        # Append before reading the flag. If _read_inbox is scheduled, it clears the flag before it reads the
        # inbox, so it finds this event.
        self._inbox.append(event)
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon_threadsafe(self._read_inbox)

    def close(self) -> None:
        """End every subscription."""
        for subscriber in self._subscribers:
            subscriber.ended.set()

    async def follow(self, request: web.Request, scope: Scope | None, after: int | None) -> web.StreamResponse:
        """Send the events after the seq `after`, then each new event. Leave out events outside `scope`."""
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
        """Send the events after `after` that are no longer in memory. Return the position of the next event.

        If the journal lacks some of these events, send a gap instead.
        """
        position = self._recent.position_after(after)
        if position is not None:
            return position
        if self._queries:
            try:
                position = await self._replay(self._queries, response, subscriber, after)
            except JournalError as error:
                log.warning("cannot send a subscriber the events that it missed: %s", error)
        if position is not None:
            return position
        end = self._recent.end
        # The gap has the id of the newest event. A subscriber that reconnects now continues after that event.
        await _send(response, subscriber, _gap_frame(self.last_seq, None))
        return end

    async def _replay(
        self, journal: JournalQueries, response: web.StreamResponse, subscriber: _Subscriber, after: int
    ) -> int | None:
        """Send the events from the journal that are no longer in memory. Return the position of the next event.

        Return None if some event between `after` and the events in memory is not in the journal.
        """
        recent = self._recent
        if after > recent.last_seq or not await journal.ask(lambda reader: reader.has(after)):
            return None
        while (position := recent.position_after(after)) is None:
            found = await journal.ask(partial(_events_after, after))
            events = [event for event in found if event.seq <= recent.evicted_seq]
            if not events:
                # The journal may lag behind memory. If memory has every event of this run, nothing is missing:
                # the first event in memory is the gap that separates this run from the earlier runs.
                return 0 if recent.first == 0 else None
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
        needs_retry = False
        for subscriber in tuple(self._subscribers):
            needs_retry |= self._send_pending(subscriber, shared)
        if needs_retry:
            self._schedule_retry()

    def _schedule_retry(self) -> None:
        """Schedule the next attempt to send. One timer serves all subscribers."""
        if self._retry_timer is None:
            self._retry_timer = self._loop.call_later(_RETRY_INTERVAL, self._retry)

    def _retry(self) -> None:
        self._retry_timer = None
        self._send_pending_to_all()

    def _send_pending(self, subscriber: _Subscriber, shared: dict[int, tuple[bytes, int]]) -> bool:
        """Send a subscriber its pending events. Return True if it reads too slowly to get all.

        `shared` maps positions to chunks. Subscribers without a scope share these chunks.
        """
        recent = self._recent
        while (
            subscriber.position is not None
            and subscriber.position < recent.end
            and not subscriber.ended.is_set()
        ):
            if subscriber.transport.get_write_buffer_size() > _UNREAD_MAX:
                return not self._disconnect_if_stalled(subscriber)
            subscriber.stalled_since = None
            if subscriber.position < recent.first:
                self._write(subscriber, _gap_frame(recent.evicted_seq, self._count_missed(subscriber)))
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
        """Count the events that a subscriber missed, and return the number. Return None if it has a scope."""
        if subscriber.scope is not None or subscriber.position is None:
            return None
        missed = self._recent.first - subscriber.position
        self.missed += missed
        return missed

    def _disconnect_if_stalled(self, subscriber: _Subscriber) -> bool:
        """Disconnect a subscriber that has read nothing for too long. Return True if it was disconnected."""
        now = time.monotonic()
        subscriber.stalled_since = subscriber.stalled_since or now
        if now - subscriber.stalled_since <= _PATIENCE:
            return False
        subscriber.transport.abort()
        subscriber.ended.set()
        return True

    def _write(self, subscriber: _Subscriber, data: bytes) -> None:
        if subscriber.transport.is_closing():
            subscriber.ended.set()
        elif subscriber.is_chunked:
            # StreamResponse.write is not used, because it would wait for the subscriber to read.
            subscriber.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            subscriber.transport.write(data)


async def _send(response: web.StreamResponse, subscriber: _Subscriber, data: bytes) -> None:
    """Write to a subscriber and wait until it reads. If that takes too long, disconnect the subscriber."""
    try:
        await asyncio.wait_for(response.write(data), _PATIENCE)
    except asyncio.TimeoutError:
        subscriber.transport.abort()
        raise ConnectionResetError("the subscriber reads nothing") from None


def _gap_frame(seq: int, lost: int | None) -> bytes:
    return frame_of(Event(seq, time.time_ns(), "gap", "reconcile", lost=lost))


def _events_after(seq: int, reader: Reader) -> list[Event]:
    return [reader.event(line) for line in reader.events(after=seq, limit=_REPLAY_ROWS)]
