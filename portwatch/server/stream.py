"""Server-sent events: each event to every subscriber, none of whom another waits for."""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from aiohttp import web
from aiohttp.http import HttpVersion11

from portwatch.errors import JournalError
from portwatch.event import Event
from portwatch.filters.scope import Scope
from portwatch.outputs.journal import Reader
from portwatch.server.journal_queries import JournalQueries
from portwatch.server.responses import refusal

log = logging.getLogger("portwatch")

HEARTBEAT = 15.0
KEPT_BYTES = 8 << 20
"""Of events, for those who come back or fall behind."""
SUBSCRIBERS_MAX = 4096
_CHUNK = 64 << 10
_UNREAD_MAX = 256 << 10
"""Of what one subscriber has not read; who reads nothing for this long is let go:"""
_PATIENCE = 60.0
_ROWS_AT_ONCE = 500
_AGAIN = 0.05
"""Seconds until those who are behind are looked at again."""


class _Entry(NamedTuple):
    event: Event
    frame: bytes


class Recent:
    """The newest events, each at a position that it keeps. Pure."""

    def __init__(self, capacity: int = KEPT_BYTES) -> None:
        self._capacity = capacity
        self._entries: list[_Entry] = []
        self._seqs: list[int] = []
        self._bytes = 0
        self.first = 0
        """The position of the oldest that is kept."""
        self.dropped_seq = 0
        """The seq of the newest that is not."""

    @property
    def end(self) -> int:
        """The position of the next event."""
        return self.first + len(self._entries)

    @property
    def last_seq(self) -> int:
        """The newest's."""
        return self._seqs[-1] if self._seqs else self.dropped_seq

    def append(self, event: Event) -> None:
        """Keeps an event, and drops a part of the oldest if there is no room."""
        frame = frame_of(event)
        self._entries.append(_Entry(event, frame))
        self._seqs.append(event.seq)
        self._bytes += len(frame)
        if self._bytes > self._capacity:
            half = len(self._entries) // 2
            self._bytes -= sum(len(entry.frame) for entry in self._entries[:half])
            self.dropped_seq = self._seqs[half - 1] if half else self.dropped_seq
            del self._entries[:half], self._seqs[:half]
            self.first += half

    def position_after(self, seq: int) -> int | None:
        """Where whoever has heard of everything up to `seq` goes on; None if that is no longer kept."""
        if not self.dropped_seq <= seq <= self.last_seq:
            return None
        return self.first + bisect_right(self._seqs, seq)

    def since(self, position: int) -> Iterable[_Entry]:
        """What is kept from a position on."""
        return self._entries[position - self.first :]


@dataclass(slots=True, eq=False)
class _Subscriber:
    transport: asyncio.Transport
    scope: Scope | None
    """None wants everything."""
    is_chunked: bool
    ended: asyncio.Event
    position: int | None = None
    """None until it was sent what is only on disk."""
    stalled_since: float | None = None


class Stream:
    """Keeps the newest events, and sends each to all who subscribe.

    A subscriber is a position among the events and a connection: none has a queue that
    could grow. What has come since the last turn goes to everybody as one write, the same
    bytes for all who want everything (bench/bench_stream.py: 1,000 subscribers).
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, first_seq: int = 1, journal: JournalQueries | None = None
    ) -> None:
        self.missed = 0
        """Events that subscribers were too slow for, as far as it is known that they wanted them."""
        self._loop = loop
        self._journal = journal
        self._recent = Recent()
        self._recent.dropped_seq = first_seq - 1
        self._inbox: deque[Event] = deque()
        self._subscribers: set[_Subscriber] = set()
        self._is_scheduled = False
        self._again: asyncio.TimerHandle | None = None

    @property
    def subscribers(self) -> int:
        """How many there are."""
        return len(self._subscribers)

    @property
    def last_seq(self) -> int:
        """The newest event's."""
        return self._recent.last_seq

    @property
    def kept_after(self) -> int:
        """The least `after` that is answered from memory."""
        return self._recent.dropped_seq

    def publish(self, event: Event) -> None:
        """Takes an event, from any thread; never waits."""
        self._inbox.append(event)
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon_threadsafe(self._take)

    def close(self) -> None:
        """Ends every subscription."""
        for one in self._subscribers:
            one.ended.set()

    async def follow(self, request: web.Request, scope: Scope | None, after: int | None) -> web.StreamResponse:
        """Send a subscriber what it missed after `after`, then every event that passes its scope."""
        if self.subscribers >= SUBSCRIBERS_MAX:
            raise refusal(web.HTTPServiceUnavailable, f"{SUBSCRIBERS_MAX} subscribers are connected already")
        if request.transport is None:
            raise ConnectionResetError("the subscriber has gone")
        is_chunked = request.version >= HttpVersion11
        one = _Subscriber(request.transport, scope, is_chunked, asyncio.Event())
        self._subscribers.add(one)
        try:
            return await self._follow(request, one, after)
        finally:
            self._subscribers.discard(one)

    async def _follow(self, request: web.Request, one: _Subscriber, after: int | None) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
            }
        )
        if one.is_chunked:
            response.enable_chunked_encoding()
        begin = self._recent.end
        await response.prepare(request)
        await _send(response, one, b"retry: 1000\n\n")
        one.position = begin if after is None else await self._catch_up(response, one, after)
        if self._serve(one, {}):
            self._look_again()
        while not one.ended.is_set():
            try:
                await asyncio.wait_for(one.ended.wait(), HEARTBEAT)
            except asyncio.TimeoutError:
                self._write(one, b":\n\n")
        return response

    async def _catch_up(self, response: web.StreamResponse, one: _Subscriber, after: int) -> int:
        """Sends what is only on disk any more, or that it is nowhere; returns where to go on."""
        position = self._recent.position_after(after)
        if position is not None:
            return position
        if self._journal:
            try:
                position = await self._replay(self._journal, response, one, after)
            except JournalError as error:
                log.warning("what a subscriber missed is not sent: %s", error)
        if position is not None:
            return position
        end = self._recent.end
        # The gap has the newest's id: whoever loses the connection now has missed nothing more.
        await _send(response, one, _gap_frame(self.last_seq, None))
        return end

    async def _replay(
        self, journal: JournalQueries, response: web.StreamResponse, one: _Subscriber, after: int
    ) -> int | None:
        """Sends what the journal has until what is kept here; None if it does not lead there."""
        if not await journal.ask(lambda reader: reader.has(after)):
            return None
        while (position := self._recent.position_after(after)) is None:
            events = await journal.ask(partial(_events_after, after))
            if not events:
                return None
            after = events[-1].seq
            wanted = [event for event in events if one.scope is None or one.scope.admits(event)]
            await _send(response, one, b"".join(frame_of(event) for event in wanted))
        return position

    def _take(self) -> None:
        self._is_scheduled = False
        while self._inbox:
            self._recent.append(self._inbox.popleft())
        self._serve_all()

    def _serve_all(self) -> None:
        shared: dict[int, tuple[bytes, int]] = {}
        behind = False
        for one in tuple(self._subscribers):
            behind |= self._serve(one, shared)
        if behind:
            self._look_again()

    def _look_again(self) -> None:
        """Soon, and once, however many are behind."""
        if self._again is None:
            self._again = self._loop.call_later(_AGAIN, self._serve_behind)

    def _serve_behind(self) -> None:
        self._again = None
        self._serve_all()

    def _serve(self, one: _Subscriber, shared: dict[int, tuple[bytes, int]]) -> bool:
        """Sends what has come for a subscriber; whether there is more than it takes now.

        What one was sent is `shared` with those who want the same from the same position on.
        """
        recent = self._recent
        while one.position is not None and one.position < recent.end and not one.ended.is_set():
            if one.transport.get_write_buffer_size() > _UNREAD_MAX:
                return self._wait_for(one)
            one.stalled_since = None
            if one.position < recent.first:
                self._write(one, _gap_frame(recent.dropped_seq, self._missed_by(one)))
                one.position = recent.first
            if one.scope is not None:
                chunk, one.position = _joined(recent, one.position, one.scope)
            else:
                if one.position not in shared:
                    shared[one.position] = _joined(recent, one.position, None)
                chunk, one.position = shared[one.position]
            if chunk:
                self._write(one, chunk)
        return False

    def _missed_by(self, one: _Subscriber) -> int | None:
        """How many events; None where it may not have wanted all of them."""
        if one.scope is not None or one.position is None:
            return None
        missed = self._recent.first - one.position
        self.missed += missed
        return missed

    def _wait_for(self, one: _Subscriber) -> bool:
        now = time.monotonic()
        one.stalled_since = one.stalled_since or now
        if now - one.stalled_since > _PATIENCE:
            one.transport.abort()
            one.ended.set()
            return False
        return True

    def _write(self, one: _Subscriber, data: bytes) -> None:
        if one.transport.is_closing():
            one.ended.set()
        elif one.is_chunked:
            # Not by StreamResponse.write, which is a coroutine with a drain for each subscriber and write.
            one.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            one.transport.write(data)


async def _send(response: web.StreamResponse, one: _Subscriber, data: bytes) -> None:
    """Waits until it is taken, but not for ever."""
    try:
        await asyncio.wait_for(response.write(data), _PATIENCE)
    except asyncio.TimeoutError:
        one.transport.abort()
        raise ConnectionResetError("it reads nothing") from None


def frame_of(event: Event) -> bytes:
    """An event as the stream has it."""
    return f"id: {event.seq}\nevent: {event.kind}\ndata: {event.to_json()}\n\n".encode()


def _joined(recent: Recent, position: int, scope: Scope | None) -> tuple[bytes, int]:
    """A chunk of frames, and the position behind it."""
    chunk = bytearray()
    for entry in recent.since(position):
        position += 1
        if scope is None or scope.admits(entry.event):
            chunk += entry.frame
        if len(chunk) >= _CHUNK:
            break
    return bytes(chunk), position


def _gap_frame(seq: int, lost: int | None) -> bytes:
    return frame_of(Event(seq, time.time_ns(), "gap", "reconcile", lost=lost))


def _events_after(seq: int, reader: Reader) -> list[Event]:
    return [reader.event(line) for line in reader.events(after=seq, limit=_ROWS_AT_ONCE)]
