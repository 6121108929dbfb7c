"""GET /api/v0/history."""

import signal

from daemon import serving
from support import wait_until


def kinds(page):
    return [event["kind"] for event in page["events"]]


def test_history_returns_the_journal_page_by_page_newest_event_first(tmp_path):
    with serving("--journal", str(tmp_path / "journal")) as daemon:
        port = daemon.open_and_close_port()
        wait_until(
            lambda: len(daemon.history(f"?port={port}")["events"]) == 2, "both events to be in the journal"
        )
        first = daemon.history(f"?port={port}&limit=1")
        second = daemon.history(f"?port={port}&limit=1&before={first['next']}")
        assert [page["events"][0]["kind"] for page in (first, second)] == ["close", "open"]
        assert daemon.history(f"?port={port}&before={second['next']}") == {"events": [], "next": None}
        assert kinds(daemon.history(f"?port={port}&kind=open")) == ["open"]
        assert daemon.history(f"?port={port}&until=1h")["events"] == []


def test_without_a_journal_history_is_not_found_and_the_error_names_the_option(daemon):
    status, _, body = daemon.request("/api/v0/history")
    assert (status, body["detail"]) == (404, "start the daemon with --journal PATH")


def test_after_a_kill_and_a_restart_seqs_are_higher_than_before(tmp_path):
    journal = str(tmp_path / "journal")
    with serving("--journal", journal) as daemon:
        daemon.open_and_close_port()
        before = daemon.listing()["seq"]
        daemon.stop(signal.SIGKILL)
    with serving("--journal", journal) as daemon:
        assert daemon.listing()["seq"] > before
        wait_until(lambda: daemon.history("?kind=gap")["events"], "the gap to be in the journal")
        seqs = [event["seq"] for event in daemon.history()["events"]]
        assert seqs == sorted(set(seqs), reverse=True)
