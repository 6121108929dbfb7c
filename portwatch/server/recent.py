"""The newest events, kept in memory as the bytes that the stream sends."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

from portwatch.event import Event
from portwatch.filters.scope import Scope

KEPT_BYTES = 8 << 20
"""Maximum size of the kept events in bytes. They are sent to subscribers that reconnect or read slowly."""
_CHUNK_BYTES = 64 << 10


class Entry(NamedTuple):
    """An event and its frame, which is the event encoded as a server-sent event."""

    event: Event
    frame: bytes


class Recent:
    """The newest events. The position of an event is its number since the start, and never changes."""

    def __init__(self, capacity: int = KEPT_BYTES) -> None:
        self._capacity = capacity
        self._entries: list[Entry] = []
        self._seqs: list[int] = []
        self._bytes = 0
        self.first = 0
        """The position of the oldest event that is kept."""
        self.evicted_seq = 0
        """The seq of the newest event that is no longer kept."""

    @property
    def end(self) -> int:
        """The position that the next event will have."""
        return self.first + len(self._entries)

    @property
    def last_seq(self) -> int:
        """The seq of the newest event."""
        return self._seqs[-1] if self._seqs else self.evicted_seq

    def append(self, event: Event) -> None:
        """Add an event. If the events exceed the capacity, drop the older half of them."""
        frame = frame_of(event)
        self._entries.append(Entry(event, frame))
        self._seqs.append(event.seq)
        self._bytes += len(frame)
        if self._bytes > self._capacity:
            half = len(self._entries) // 2
            self._bytes -= sum(len(entry.frame) for entry in self._entries[:half])
            self.evicted_seq = self._seqs[half - 1] if half else self.evicted_seq
            del self._entries[:half], self._seqs[:half]
            self.first += half

    def position_after(self, seq: int) -> int | None:
        """Return the position of the first event after `seq`.

        Return None if events after `seq` were dropped, or if `seq` is higher than the seq of the newest event.
        """
        if not self.evicted_seq <= seq <= self.last_seq:
            return None
        return self.first + bisect_right(self._seqs, seq)

    def chunk_at(self, position: int, scope: Scope | None) -> tuple[bytes, int]:
        """Return the frames to send next to a subscriber with this scope, and the position after them."""
        chunk = bytearray()
        for entry in self.since(position):
            position += 1
            if scope is None or scope.admits(entry.event):
                chunk += entry.frame
            if len(chunk) >= _CHUNK_BYTES:
                break
        return bytes(chunk), position

    def since(self, position: int) -> Iterable[Entry]:
        """Return the entries from a position on."""
        return self._entries[position - self.first :]


def frame_of(event: Event) -> bytes:
    """Encode an event as a server-sent event."""
    return f"id: {event.seq}\nevent: {event.kind}\ndata: {event.to_json()}\n\n".encode()
