"""The command `portwatch history`: it prints the events of a journal as text or JSON."""

import json
import sqlite3
import subprocess
import time
from contextlib import closing

import journals
import pytest
from click.testing import CliRunner
from commands import PORTWATCH, run
from support import PATIENCE

from portwatch.cli.main import portwatch

MINUTE = 60_000_000_000


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def events(path):
    """The three events in a journal. They happened 90 minutes ago, 60 minutes ago, and now."""
    now = time.time_ns()
    written = [
        event(1, now - 90 * MINUTE, 80, "nginx"),
        event(2, now - 60 * MINUTE, 8080, "java"),
        event(3, now, 8081, "node"),
    ]
    journals.write_journal(path, *written)
    return written


def event(seq, when, port, process):
    return journals.event(
        seq, time=when, address="0.0.0.0", port=port, exposure="all", pid=1, process=process, opener=None
    )


def history(*arguments):
    return CliRunner().invoke(portwatch, ["history", *map(str, arguments)], prog_name="portwatch")


def ports(*arguments):
    result = history("--json", *arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return [json.loads(line)["port"] for line in result.stdout.splitlines()]


def test_json_output_has_the_events_exactly_as_they_were_written(path, events):
    assert history("--journal", path, "--json").stdout.splitlines() == [event.to_json() for event in events]


def test_text_output_has_the_lines_of_tail_with_a_date(path, events):
    lines = history("--journal", path).stdout.splitlines()
    day = time.strftime("%Y-%m-%d", time.localtime(events[0].time // 1_000_000_000))
    assert lines[0].startswith(f"{day} ")
    assert lines[0].endswith("open          tcp 0.0.0.0:80               nginx (1), all addresses")
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--since", "2h"], [80, 8080, 8081]),
        (["--since", "75m"], [8080, 8081]),
        (["--port", "8000-8080,81"], [8080]),
        (["--port", "80", "--port", "8081"], [80, 8081]),
        (["--process", "n*"], [80, 8081]),
        (["--process", "java,node", "--since", "30m"], [8081]),
        (["--process", "nobody"], []),
    ],
    ids=str,
)
@pytest.mark.usefixtures("events")
def test_options_select_events(path, options, expected):
    assert ports("--journal", path, *options) == expected


@pytest.mark.usefixtures("events")
def test_a_journal_can_be_read_while_it_is_open_for_writing(path):
    with journals.open_journal(path):
        assert ports("--journal", path) == [80, 8080, 8081]
    assert {entry.name for entry in path.parent.iterdir()} == {path.name, path.name + "-lock"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Missing option '--journal'"),
        (["--journal", "/nosuch"], "'/nosuch' does not exist"),
        (["--journal", "/"], "'/' is a directory"),
        (["--journal", "/dev/null", "--since", "soon"], "'--since': 'soon' is not a time: try 10m"),
        (["--journal", "/dev/null", "--port", "http"], "'--port': 'http' is not a port"),
    ],
    ids=str,
)
def test_a_usage_error_exits_with_2_and_says_what_is_wrong(options, message):
    result = history(*options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_file_that_is_not_a_journal_is_reported_in_one_line(path):
    path.write_text("not a database\n")
    result = run("history", "--journal", path)
    assert (result.returncode, result.stdout) == (1, "")
    assert "is not a portwatch journal and was not changed" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.usefixtures("events")
def test_a_damaged_event_is_reported_in_one_line(path):
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE events SET line = substr(line, 1, 100) WHERE seq = 2")
    result = run("history", "--journal", path)
    assert result.returncode == 1
    assert len(result.stdout.splitlines()) == 1
    assert "is damaged: it contains" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_history_exits_with_0_when_the_reader_closes_the_pipe(path, form):
    journals.write_journal(path, *(event(seq, time.time_ns(), 80, "nginx") for seq in range(1, 5001)))
    with subprocess.Popen(
        [*PORTWATCH, "history", "--journal", path, *form],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 0
