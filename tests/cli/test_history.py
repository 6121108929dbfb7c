"""portwatch history: what a journal holds, for people and for programs."""

import json
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import journals
import pytest
from click.testing import CliRunner

from portwatch.cli.main import portwatch

PATIENCE = 30
MINUTE = 60_000_000_000


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def events(path):
    """Three, an hour and more ago, and now."""
    now = time.time_ns()
    made = [
        event(1, now - 90 * MINUTE, 80, "nginx"),
        event(2, now - 60 * MINUTE, 8080, "java"),
        event(3, now, 8081, "node"),
    ]
    journals.written(path, *made)
    return made


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


def test_to_programs_it_gives_the_lines_that_everybody_got(path, events):
    assert history("--journal", path, "--json").stdout.splitlines() == [one.to_json() for one in events]


def test_to_people_it_gives_the_lines_of_the_tail_with_the_day(path, events):
    lines = history("--journal", path).stdout.splitlines()
    day = time.strftime("%Y-%m-%d", time.localtime(events[0].time // 1_000_000_000))
    assert lines[0].startswith(f"{day} ")
    assert lines[0].endswith("open          tcp 0.0.0.0:80               nginx (1), every address")
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("options", "found"),
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
def test_it_gives_what_was_asked_for(path, options, found):
    assert ports("--journal", path, *options) == found


@pytest.mark.usefixtures("events")
def test_it_reads_while_the_daemon_writes(path):
    with journals.opened(path):
        assert ports("--journal", path) == [80, 8080, 8081]
    assert {one.name for one in path.parent.iterdir()} == {path.name, path.name + "-lock"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "Missing option '--journal'"),
        (["--journal", "/nosuch"], "'/nosuch' does not exist"),
        (["--journal", "/"], "'/' is a directory"),
        (["--journal", "/dev/null", "--since", "soon"], "'--since': 'soon' is not a time: try 10m"),
        (["--journal", "/dev/null", "--port", "http"], "'--port': 'http' is not a port"),
    ],
    ids=str,
)
def test_wrong_use_exits_with_2_and_names_what_was_wrong(options, said):
    result = history(*options)
    assert result.exit_code == 2
    assert said in result.stderr


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "portwatch", "history", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_what_is_no_journal_is_said_in_one_line(path):
    path.write_text("not a database\n")
    result = run("--journal", path)
    assert (result.returncode, result.stdout) == (1, "")
    assert "is not a journal of portwatch's, and was left as it is" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.usefixtures("events")
def test_a_damaged_line_is_said_in_one_line(path):
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE events SET line = substr(line, 1, 100) WHERE seq = 2")
    result = run("--journal", path)
    assert result.returncode == 1
    assert len(result.stdout.splitlines()) == 1
    assert "is damaged: it holds" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_it_ends_cleanly_when_nobody_reads_any_more(path, form):
    journals.written(path, *(event(seq, time.time_ns(), 80, "nginx") for seq in range(1, 5001)))
    with subprocess.Popen(
        [sys.executable, "-m", "portwatch", "history", "--journal", path, *form],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 0
