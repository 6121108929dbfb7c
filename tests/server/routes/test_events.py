"""GET /api/v0/events, with a real daemon. test_stream.py tests the stream without one."""

import socket
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from daemon import free_port, serving
from support import EVENT_FIELDS


def test_a_subscriber_receives_an_open_and_a_close_with_all_fields(daemon):
    with daemon.subscribe() as events:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            opened = next(event for event in events if event[2]["port"] == port)
        closed = next(event for event in events if event[2]["port"] == port)
    assert [opened[1], closed[1]] == ["open", "close"]
    assert list(opened[2]) == EVENT_FIELDS
    assert opened[0] == opened[2]["seq"] < closed[0]


def test_a_subscriber_that_reconnects_receives_the_events_that_it_missed(daemon):
    seq = daemon.listing()["seq"]
    port = daemon.open_and_close_port()
    for headers, query in (({"Last_Event_ID": str(seq)}, ""), ({}, f"?after={seq}")):
        with daemon.subscribe(query, **headers) as events:
            missed = [next(events) for _ in range(2)]
        assert [(kind, data["port"]) for _, kind, data in missed] == [("open", port), ("close", port)]
    with daemon.subscribe("?after=1", Last_Event_ID=str(missed[0][0])) as events:
        assert next(events) == missed[1]


def test_after_with_kept_after_replays_every_event_in_memory(daemon, listed_port):
    kept_after = daemon.listing()["kept_after"]
    with daemon.subscribe(f"?after={kept_after}") as events:
        assert next(data for _, _, data in events if data["port"] == daemon.port)["origin"] == "snapshot"
        assert next(data for _, _, data in events if data["port"] == listed_port)["kind"] == "open"
    with daemon.subscribe(f"?after={kept_after - 1}") as events:
        assert next(events)[1] == "gap"


@pytest.mark.parametrize("event_id", ["1", "9223372036854775807", "x"])
def test_an_unknown_last_event_id_causes_a_gap_and_then_new_events(daemon, event_id):
    with daemon.subscribe(Last_Event_ID=event_id) as events:
        _, kind, data = next(events)
        assert (kind, data["lost"]) == ("gap", None)
        with socket.create_server(("127.0.0.1", 0)) as server:
            assert server.getsockname()[1] in (data["port"] for _, _, data in events)


def test_a_subscriber_receives_only_events_within_its_scope(daemon):
    with socket.create_server(("127.0.0.1", 0)) as first:
        excluded = first.getsockname()[1]
        daemon.wait_for(excluded)
        with daemon.subscribe(f"?not_port={excluded}") as events:
            first.close()
            with socket.create_server(("127.0.0.1", 0)) as second:
                assert next(events)[2]["port"] == second.getsockname()[1]


def test_a_subscriber_that_never_reads_does_not_delay_others(daemon):
    ports, rounds, event_bytes = 400, 12, 500
    with socket.socket() as idle, daemon.subscribe() as events:
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        idle.connect(("127.0.0.1", daemon.port))
        idle.sendall(b"GET /api/v0/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        max_send_buffer = int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text().split()[2])
        assert 2 * ports * rounds * event_bytes > max_send_buffer
        for _ in range(rounds):
            opened = daemon.open_and_close_ports(ports)
            kinds = (kind for _, kind, event in events if event["port"] in opened)
            assert Counter(islice(kinds, 2 * ports)) == {"open": ports, "close": ports}


def test_a_head_request_is_not_allowed(daemon):
    assert daemon.request("/api/v0/events", "HEAD")[0] == 405


def test_without_a_journal_a_last_event_id_from_an_earlier_run_causes_a_gap():
    port = free_port()
    with serving(port=port) as daemon:
        seq = daemon.listing()["seq"]
    time.sleep(0.01)
    with serving(port=port) as daemon, daemon.subscribe(Last_Event_ID=str(seq)) as events:
        assert next(events)[1] == "gap"


def test_after_a_restart_a_subscriber_gets_missed_journal_events_then_a_gap(tmp_path):
    journal = str(tmp_path / "journal")
    with serving("--journal", journal) as daemon:
        daemon.open_and_close_port()
        seq = daemon.listing()["seq"]
        port = daemon.open_and_close_port()
        first_port = daemon.port  # the daemon may report that its own port closes when it stops
        assert daemon.stop()[0] == 0
    with serving("--journal", journal) as daemon, daemon.subscribe(Last_Event_ID=str(seq)) as events:
        missed = ((kind, data["port"]) for _, kind, data in events if data["port"] != first_port)
        assert [next(missed) for _ in range(3)] == [("open", port), ("close", port), ("gap", None)]
        assert next(data["origin"] for _, _, data in events if data["port"] == daemon.port) == "snapshot"
