"""The core engine: it recovers from lost records, and connections produce no records."""

import pytest
from support import CORE_HOOKS, replay, wait_until

from portwatch.engines.choice import Choice
from portwatch.engines.core.engine import CoreEngine
from portwatch.watch.hub import Hub


def gaps(events):
    return [event for event in list(events) if event.kind == "gap"]


@pytest.mark.parametrize("hooks", CORE_HOOKS)
def test_lost_records_are_counted_and_reconciliation_reports_the_missed_changes(actor, hooks):
    engine = CoreEngine(ring_bytes=4096, hooks=hooks)
    engine.attach()
    hub = Hub(Choice(engine))
    delivered = []
    hub.subscribe(lambda event: event.netns in (None, actor.netns), callback=delivered.append)
    hub.start()
    try:
        actor.do("socks = [listener(port=port) for port in range(2000, 3000)]")
        actor.do("[s.close() for s in socks[:500]]")
        wait_until(lambda: hub.counts.lost and hub.counts.lost >= engine.lost, "a lost record")
        wait_until(lambda: replay(list(delivered)) == list(range(2500, 3000)), "the missed changes")
        wait_until(
            lambda: sum(event.lost for event in gaps(delivered)) == hub.counts.lost,
            "the gap events, which come last",
        )
        assert hub.counts.reconciliations["loss"] == len(gaps(delivered))
        assert any(event.origin == "reconcile" for event in delivered)
    finally:
        hub.stop()


def test_connections_produce_no_records(actor):
    engine = CoreEngine()
    engine.attach()
    try:
        actor.do("s = listener(port=8080)")
        for _ in range(20):
            actor.do("c = socket.create_connection(('127.0.0.1', 8080)); s.accept()[0].close(); c.close()")
        records = [record for record in engine.read_up_to_now() if record.socket.netns == actor.netns]
        assert [record.kind for record in records] == ["open"]
    finally:
        engine.detach()
