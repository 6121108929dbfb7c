from hypothesis import given
from hypothesis import strategies as st

from portwatch.event import Event
from portwatch.server.recent import Recent, frame_of


def event(seq):
    return Event(seq, 1_000_000_000, "open", "event", "tcp", "ipv4", "127.0.0.1", 8080, exposure="loopback")


FRAME_BYTES = len(frame_of(event(1000)))


@given(st.integers(0, 60), st.integers(1, 20))
def test_the_newest_events_are_kept_and_the_events_after_a_seq_can_be_found(count, capacity):
    recent = Recent(capacity * FRAME_BYTES)
    for seq in range(1, count + 1):
        recent.append(event(seq))
    kept = [entry.event.seq for entry in recent.since(recent.first)]
    assert kept == list(range(recent.evicted_seq + 1, count + 1))
    assert recent.end == count
    assert recent.last_seq == count
    for seq in range(count + 2):
        position = recent.position_after(seq)
        if recent.evicted_seq <= seq <= count:
            assert [entry.event.seq for entry in recent.since(position)] == list(range(seq + 1, count + 1))
        else:
            assert position is None


@given(st.integers(1, 200), st.integers(2, 20))
def test_the_kept_events_never_exceed_the_capacity(count, capacity):
    recent = Recent(capacity * FRAME_BYTES)
    for seq in range(count):
        recent.append(event(seq))
        assert len(list(recent.since(recent.first))) <= capacity
