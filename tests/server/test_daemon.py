"""The daemon, as a process that real sockets are opened beside."""

import contextlib
import fcntl
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import schemathesis
from daemon import PATIENCE, POLL, free_port, serving
from support import EVENT_FIELDS, ROOT, wait_until

from portwatch.server import middleware


@pytest.fixture(scope="module")
def daemon():
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def keeping(tmp_path_factory):
    """One with a journal."""
    with serving("--journal", str(tmp_path_factory.mktemp("journal") / "journal")) as running:
        yield running


@pytest.fixture
def port():
    """A port that we listen on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_is_listed_in_the_shape_that_editors_know(daemon, port):
    (found,) = wait_until(lambda: daemon.ports(f"?port={port}"), "the port")
    assert (found["network"], found["port"]) == ("tcp", port)
    assert found["process_name"] == found["process"]
    assert found["pid"] == os.getpid()
    assert [one["pid"] for one in found["holders"]] == [os.getpid()]


@pytest.mark.parametrize(
    ("query", "is_in"),
    [
        ("min_port={port}", True),
        ("min_port={above}", False),
        ("ignore=1,{port}", False),
        ("ignore=1", True),
        ("exposure=loopback", True),
        ("exposure=all&exposure=public", False),
        ("not_exposure=loopback", False),
        ("proto=udp", False),
        ("process=no*such", False),
        ("netns=self", True),
        ("netns=1", False),
    ],
)
def test_a_listing_is_narrowed_by_the_names_of_the_options(daemon, port, query, is_in):
    wait_until(lambda: daemon.ports(f"?port={port}"), "the port")
    query = query.format(port=port, above=port + 1)
    assert (port in {one["port"] for one in daemon.ports(f"?{query}")}) == is_in


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/api/v0/listening-ports?prot=tcp", "did you mean 'proto'?"),
        ("/api/v0/listening-ports?min_port=high", "no number from 0 to 65535"),
        ("/api/v0/listening-ports?ignore=ssh", "'ssh' is not a port"),
        ("/api/v0/listening-ports?pid=99999999", "'99999999' is not a pid"),
        ("/api/v0/events?after=-1", "is no number"),
        ("/api/v0/who", "port is missing"),
        ("/healthz?x=1", "there is no parameter 'x'"),
    ],
)
def test_a_wrong_question_is_refused_with_what_would_be_right(daemon, path, said):
    status, _, answer = daemon.ask(path)
    assert status == 400
    assert set(answer) == {"message", "detail"}
    assert said in f"{answer['message']} {answer['detail']}"


@pytest.mark.parametrize("path", ["listening-ports?", "who?port={port}&"])
def test_a_pid_narrows_to_what_its_tree_holds_and_not_pid_takes_that_away(daemon, port, path):
    wait_until(lambda: daemon.ports(f"?port={port}"), "the port")
    path = "/api/v0/" + path.format(port=port)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert port in {one["port"] for one in daemon.ask(f"{path}pid={os.getpid()}")[2]["ports"]}
        assert daemon.ask(f"{path}pid={child.pid}")[2]["ports"] == []
        assert port not in {one["port"] for one in daemon.ask(f"{path}not_pid={os.getpid()}")[2]["ports"]}
        assert port in {one["port"] for one in daemon.ask(f"{path}not_pid={child.pid}")[2]["ports"]}
        child.communicate(b"\n")
    status, _, answer = daemon.ask(f"{path}pid={child.pid}")
    assert (status, str(child.pid) in answer["message"]) == (404, True)


@pytest.mark.parametrize("name", ["nosuch", "/proc/1/ns/net", ""])
def test_a_namespace_is_no_path_for_us_to_open(daemon, name):
    status, _, answer = daemon.ask(f"/api/v0/listening-ports?netns={name}")
    assert (status, answer["message"]) == (404, f"no network namespace is called {name!r}")


def test_who_tells_how_a_holder_was_called_and_whom_it_descends_from(daemon, port):
    wait_until(lambda: daemon.ports(f"?port={port}"), "the port")
    (found,) = daemon.ask(f"/api/v0/who?port={port}")[2]["ports"]
    assert found["ancestry"][-1]["pid"] == os.getpid()
    assert found["holders"][0]["command"][0]


def test_who_names_who_holds_a_port_by_now(daemon):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        wait_until(lambda: daemon.ports(f"?port={port}"), "the port")
        heir = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[server.fileno()]
        )
    (found,) = daemon.ask(f"/api/v0/who?port={port}")[2]["ports"]
    heir.communicate(b"\n")
    assert [one["pid"] for one in found["holders"]] == [heir.pid]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nosuch", 404), ("POST", "/healthz", 405), ("DELETE", "/readyz", 405)],
)
def test_what_there_is_not_is_refused_in_the_same_form(daemon, method, path, status):
    answer = daemon.ask(path, method)
    assert answer[0] == status
    assert set(answer[2]) == {"message", "detail"}


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9935", "127.0.0.1.evil.example", ""])
def test_a_page_cannot_reach_it_by_a_name_of_its_own(daemon, host):
    status, _, answer = daemon.ask("/api/v0/listening-ports", Host=host)
    assert status == 421
    assert "ports" not in answer


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:1", "127.0.0.1:9935", "[::1]:9935", "[::1]", "10.1.2.3", socket.gethostname()],
)
def test_it_is_reached_by_number_and_by_its_own_name(daemon, host):
    assert daemon.ask("/healthz", Host=host)[0] == 200


def test_no_browser_is_left_to_guess_or_to_frame(daemon):
    headers = daemon.ask("/healthz")[1]
    assert (headers["X-Content-Type-Options"], headers["X-Frame-Options"]) == ("nosniff", "DENY")
    assert headers.get_all("Server") == ["portwatch"]


def test_the_stream_tells_each_change_in_the_one_form(daemon):
    with daemon.subscribe() as events:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            opened = next(one for one in events if one[2]["port"] == port)
        closed = next(one for one in events if one[2]["port"] == port)
    assert [opened[1], closed[1]] == ["open", "close"]
    assert list(opened[2]) == EVENT_FIELDS
    assert opened[0] == opened[2]["seq"] < closed[0]


def test_who_comes_back_is_told_what_happened_meanwhile(daemon):
    seq = daemon.ask("/api/v0/listening-ports")[2]["seq"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        wait_until(lambda: daemon.ports(f"?port={port}"), "the port")
    wait_until(lambda: not daemon.ports(f"?port={port}"), "its end")
    for headers, query in (({"Last_Event_ID": str(seq)}, ""), ({}, f"?after={seq}")):
        with daemon.subscribe(query, **headers) as events:
            told = [next(events) for _ in range(2)]
        assert [(kind, data["port"]) for _, kind, data in told] == [("open", port), ("close", port)]
    with daemon.subscribe("?after=1", Last_Event_ID=str(told[0][0])) as events:
        assert next(events) == told[1]


def test_all_that_is_kept_is_told_again(daemon, port):
    wait_until(lambda: daemon.ports(f"?port={port}"), "the port")
    listing = daemon.ask("/api/v0/listening-ports")[2]
    with daemon.subscribe(f"?after={listing['kept_after']}") as events:
        assert next(data for _, _, data in events if data["port"] == daemon.port)["origin"] == "snapshot"
        assert next(data for _, _, data in events if data["port"] == port)["kind"] == "open"
    with daemon.subscribe(f"?after={listing['kept_after'] - 1}") as events:
        assert next(events)[1] == "gap"


@pytest.mark.parametrize("known", ["1", "9223372036854775807", "x"])
def test_who_comes_back_with_an_id_that_is_not_known_is_told_of_a_gap_and_goes_on(daemon, known):
    with daemon.subscribe(Last_Event_ID=known) as events:
        _, kind, data = next(events)
        assert (kind, data["lost"]) == ("gap", None)
        with socket.create_server(("127.0.0.1", 0)) as server:
            assert server.getsockname()[1] in (data["port"] for _, _, data in events)


def test_a_subscriber_is_told_of_its_scope_only(daemon):
    with socket.create_server(("127.0.0.1", 0)) as first:
        unwanted = first.getsockname()[1]
        wait_until(lambda: daemon.ports(f"?port={unwanted}"), "the port")
        with daemon.subscribe(f"?not_port={unwanted}") as events:
            first.close()
            with socket.create_server(("127.0.0.1", 0)) as second:
                assert next(events)[2]["port"] == second.getsockname()[1]


def open_and_close(daemon, count):
    """So many ports at once, of each of which the daemon tells twice; returns them."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        ports = [server.getsockname()[1] for server in servers]
        wait_until(lambda: daemon.ports(f"?port={ports[-1]}"), "the last port")
    wait_until(lambda: not daemon.ports(f"?port={ports[-1]}"), "its end")
    return ports


def test_a_subscriber_that_never_reads_keeps_nobody_waiting(daemon):
    ports, rounds, event_bytes = 400, 12, 500
    with socket.socket() as idle, daemon.subscribe() as events:
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        idle.connect(("127.0.0.1", daemon.port))
        idle.sendall(b"GET /api/v0/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        idle_may_keep = int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text().split()[2])
        assert 2 * ports * rounds * event_bytes > idle_may_keep
        for _ in range(rounds):
            opened = open_and_close(daemon, ports)
            ours = (kind for _, kind, event in events if event["port"] in opened)
            told = Counter(islice(ours, 2 * ports))
            assert told == {"open": ports, "close": ports}


HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (HEAD + b"X: " + b"x" * 10_000 + b"\r\n\r\n", 400),
        (b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (HEAD + b"Host: localhost\r\n\r\n", 400),
        (HEAD + b"Expect: wonders\r\n\r\n", 417),
    ],
    ids=["nonsense", "header", "address", "hosts", "expects"],
)
def test_what_is_no_right_request_is_refused_in_our_form_and_is_nothing_for_the_log(request_, status):
    with serving() as daemon:
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE) as client:
            client.sendall(request_)
            response = http.client.HTTPResponse(client)
            response.begin()
            assert (response.status, response.getheader("Server")) == (status, "portwatch")
            assert set(json.loads(response.read())) == {"message", "detail"}
        assert daemon.ask("/healthz")[0] == 200
        assert daemon.end()[2] == ""


def test_a_stream_without_a_body_is_none(daemon):
    assert daemon.ask("/api/v0/events", "HEAD")[0] == 405


def test_an_endless_request_ends_its_connection_alone(daemon):
    with (
        socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE) as client,
        contextlib.suppress(ConnectionError),
    ):
        client.sendall(HEAD + b"X: " + b"x" * 100_000 + b"\r\n\r\n")
        assert b" 400 Bad Request" in client.recv(100)
    assert daemon.ask("/healthz")[0] == 200


def test_a_request_that_never_comes_to_an_end_is_not_waited_for(daemon):
    assert middleware.PATIENCE * 2 < PATIENCE
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHo")
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100) == b""


def test_what_the_description_says_is_true(keeping):
    flash(keeping)
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{keeping.port}/api/v0/openapi.json")
    assert {one.ok().path for one in schema.get_all_operations()} >= {"/api/v0/listening-ports", "/readyz"}
    result = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "schemathesis.cli",
                "run",
                f"http://127.0.0.1:{keeping.port}/api/v0/openapi.json",
            ),
            *(
                "--max-examples",
                "25",
                "--exclude-path",
                "/api/v0/events",
                "--no-color",
                "--generation-database",
                ":memory:",
            ),
            *("--phases", "examples,coverage,fuzzing", "--workers", "1", "--seed", "1"),
        ],
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": "schemathesis_formats",
            "PYTHONPATH": str(ROOT / "tests"),
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stdout


def test_a_taken_port_ends_it_with_a_line_that_says_who_can_tell(port):
    result = subprocess.run(
        [sys.executable, "-m", "portwatch", "serve", *POLL, "--listen", f"127.0.0.1:{port}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == (
        f"portwatch: 127.0.0.1:{port} cannot be listened on: the port is taken "
        f"(portwatch who tcp/{port} shows by whom)\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_also_while_somebody_listens(number, tmp_path):
    path = tmp_path / "sock"
    with serving("--listen", f"unix:{path}") as daemon, daemon.subscribe() as events:
        assert path.exists()
        status, _, errors = daemon.end(number)
        assert (status, errors) == (0, "")
        assert not path.exists()
        for _ in events:  # to their end
            pass


def test_each_change_is_a_line_of_its_log():
    with serving("--log", "json") as daemon:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            wait_until(lambda: daemon.ports(f"?port={port}"), "the port")
        wait_until(lambda: not daemon.ports(f"?port={port}"), "its end")
        _, output, _ = daemon.end()
    changes = [one for one in map(json.loads, output.splitlines()) if one["port"] == port]
    assert [one["kind"] for one in changes] == ["open", "close"]


def test_also_words_about_the_run_are_lines_for_programs(tmp_path, port):
    result = subprocess.run(
        [sys.executable, "-m", "portwatch", "serve", *POLL, "--log", "json", "--listen", f"127.0.0.1:{port}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 1
    (said,) = map(json.loads, result.stderr.splitlines())
    assert (said["level"], "cannot be listened on" in said["message"]) == ("error", True)
    config = tmp_path / "portwatch.toml"
    config.write_text('log = "json"\n')
    with serving("--config", str(config)) as daemon:
        daemon.process.send_signal(signal.SIGHUP)
        said = json.loads(daemon.process.stderr.readline())
        assert (said["level"], said["message"]) == ("info", "reloaded")


def test_a_log_that_nobody_reads_any_more_keeps_nobody_waiting():
    with serving() as daemon:
        daemon.process.stdout.close()
        for _ in range(2):
            open_and_close(daemon, 1)


def test_a_log_that_nobody_reads_for_now_keeps_nobody_waiting():
    with serving("--log", "json") as daemon:
        open_and_close(daemon, fcntl.fcntl(daemon.process.stdout, fcntl.F_GETPIPE_SZ) // 500)
        open_and_close(daemon, 1)
        assert daemon.end()[0] == 0


def test_a_reload_takes_over_without_losing_an_event(tmp_path):
    config = tmp_path / "portwatch.toml"
    config.write_text("not-port = 1\n")
    with serving("--config", str(config)) as daemon, daemon.subscribe() as events:
        told, is_over = [], threading.Event()
        ports = []

        def storm():
            while not is_over.is_set():
                with socket.create_server(("127.0.0.1", 0)) as server:
                    ports.append(server.getsockname()[1])
                    wait_until(lambda: daemon.ports(f"?port={ports[-1]}"), "the port")

        storming = threading.Thread(target=storm)
        storming.start()
        wait_until(lambda: len(ports) > 2, "some ports")
        config.write_text("not-port = [1, 2]\n")
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(ports) > 20, "some more")
        is_over.set()
        storming.join()
        with socket.create_server(("127.0.0.1", 0)) as last:
            for event in events:
                told.append(event)
                if event[1] == "open" and event[2]["port"] == last.getsockname()[1]:
                    break
        kinds = [(kind, data["lost"]) for _, kind, data in told if kind == "gap"]
        assert kinds == [("gap", 0)]
        for port in set(ports):
            mine = [kind for _, kind, data in told if data["port"] == port and data["origin"] == "event"]
            assert mine == ["open", "close"] * ports.count(port)
        assert [seq for seq, _, _ in told] == sorted({seq for seq, _, _ in told})


def test_a_reload_shows_what_the_new_scope_admits(tmp_path, port):
    config = tmp_path / "portwatch.toml"
    config.write_text(f"not-port = {port}\n")
    with serving("--config", str(config)) as daemon:
        assert daemon.ports(f"?port={port}") == []
        with daemon.subscribe() as events:
            config.write_text("")
            daemon.process.send_signal(signal.SIGHUP)
            assert next(events)[1] == "gap"
            opened = next(data for _, kind, data in events if data["port"] == port)
            assert (opened["kind"], opened["origin"]) == ("open", "snapshot")
        assert daemon.ports(f"?port={port}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "lisen = 1\n",
            "not reloaded, all stays as it was: {config}: there is no 'lisen'; did you mean 'listen'?",
        ),
        (
            "ephemeral = true\n",
            "not reloaded, all stays as it was: ephemeral cannot change while it runs: restart it",
        ),
        ('log = "json"\n', "not reloaded, all stays as it was: {config}: log cannot change while it runs"),
        (
            'procfs = "/tmp"\n',
            "not reloaded, all stays as it was: {config}: procfs cannot change while it runs",
        ),
        ('expect = "tcp/1"\nport = 2\n', "not reloaded, all stays as it was: tcp/1 is expected, and outside"),
        ("pid = 2147483647\n", "not reloaded, all stays as it was: there is no process 2147483647"),
        (f"port = {'[' * 5000}", "not reloaded, all stays as it was: {config} is nested too deeply to be read"),
    ],
)
def test_a_reload_that_cannot_be_changes_nothing_and_says_why(tmp_path, port, content, said):
    config = tmp_path / "portwatch.toml"
    config.write_text("")
    with serving("--config", str(config)) as daemon:
        config.write_text(content)
        daemon.process.send_signal(signal.SIGHUP)
        line = daemon.process.stderr.readline()
        assert said.format(config=config) in line
        wait_until(lambda: daemon.ports(f"?port={port}"), "the port")
        config.write_text(f"not-port = {port}\n")
        daemon.process.send_signal(signal.SIGHUP)
        assert daemon.process.stderr.readline() == "portwatch: reloaded\n"
        assert not daemon.ports(f"?port={port}")


def test_systemd_is_told_of_readiness_life_reload_and_end(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
        with serving(environment=environment) as daemon:
            told = []
            while told.count("READY=1") < 1 or told.count("WATCHDOG=1") < 2:
                told.append(manager.recv(200).decode())
            assert set(told) == {"READY=1", "WATCHDOG=1"}
            daemon.process.send_signal(signal.SIGHUP)
            while not (line := manager.recv(200).decode()).startswith("RELOADING=1\nMONOTONIC_USEC="):
                assert line == "WATCHDOG=1"
            while (line := manager.recv(200).decode()) != "READY=1":
                assert line == "WATCHDOG=1"
            daemon.end()
            while (line := manager.recv(200).decode()) != "STOPPING=1":
                assert line == "WATCHDOG=1"


def test_a_socket_file_needs_no_host(tmp_path):
    path = tmp_path / "sock"
    with serving("--listen", f"unix:{path}"), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: anything\r\nConnection: close\r\n\r\n")
        response = http.client.HTTPResponse(client)
        response.begin()
        assert response.status == 200


def test_it_starts_again_at_once_on_the_port_it_had():
    port = free_port()
    for _ in range(2):
        with serving(port=port) as daemon, daemon.subscribe():
            assert daemon.end()[0] == 0


def test_ids_of_an_earlier_run_are_none_of_this_one():
    port = free_port()
    with serving(port=port) as daemon:
        seq = daemon.ask("/api/v0/listening-ports")[2]["seq"]
    time.sleep(0.01)
    with serving(port=port) as daemon, daemon.subscribe(Last_Event_ID=str(seq)) as events:
        assert next(events)[1] == "gap"


def flash(daemon):
    """A port that was open, and of which the daemon has told."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        wait_until(lambda: daemon.ports(f"?port={port}"), "the port")
    wait_until(lambda: not daemon.ports(f"?port={port}"), "its end")
    return port


def history(daemon, query=""):
    return daemon.ask(f"/api/v0/history{query}")[2]


def test_history_is_the_journals_a_page_at_a_time(tmp_path):
    with serving("--journal", str(tmp_path / "journal")) as daemon:
        port = flash(daemon)
        wait_until(lambda: len(history(daemon, f"?port={port}")["events"]) == 2, "the journal")
        first = history(daemon, f"?port={port}&limit=1")
        second = history(daemon, f"?port={port}&limit=1&before={first['next']}")
        assert [page["events"][0]["kind"] for page in (first, second)] == ["close", "open"]
        assert history(daemon, f"?port={port}&before={second['next']}") == {"events": [], "next": None}
        assert [one["kind"] for one in history(daemon, f"?port={port}&kind=open")["events"]] == ["open"]
        assert history(daemon, f"?port={port}&until=1h")["events"] == []


def test_without_a_journal_there_is_no_history_and_it_says_what_to_do(daemon):
    status, _, answer = daemon.ask("/api/v0/history")
    assert (status, answer["detail"]) == (404, "start the daemon with --journal PATH")


def test_who_comes_back_after_a_restart_is_told_what_the_journal_has_then_that_there_is_a_gap(tmp_path):
    journal = str(tmp_path / "journal")
    with serving("--journal", journal) as daemon:
        flash(daemon)
        seq = daemon.ask("/api/v0/listening-ports")[2]["seq"]
        port = flash(daemon)
        own = daemon.port  # whose close the daemon may see itself, at its end
        assert daemon.end()[0] == 0
    with serving("--journal", journal) as daemon, daemon.subscribe(Last_Event_ID=str(seq)) as events:
        others = ((kind, data["port"]) for _, kind, data in events if data["port"] != own)
        assert [next(others) for _ in range(3)] == [("open", port), ("close", port), ("gap", None)]
        assert next(data["origin"] for _, _, data in events if data["port"] == daemon.port) == "snapshot"


def test_a_killed_daemon_goes_on_with_higher_numbers(tmp_path):
    journal = str(tmp_path / "journal")
    with serving("--journal", journal) as daemon:
        flash(daemon)
        before = daemon.ask("/api/v0/listening-ports")[2]["seq"]
        daemon.end(signal.SIGKILL)
    with serving("--journal", journal) as daemon:
        assert daemon.ask("/api/v0/listening-ports")[2]["seq"] > before
        wait_until(lambda: history(daemon, "?kind=gap")["events"], "the journal")
        numbers = [one["seq"] for one in history(daemon)["events"]]
        assert numbers == sorted(set(numbers), reverse=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system, which only root can")
def test_a_full_disk_is_said_and_stops_nothing(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=True)
    try:
        with serving("--journal", str(tmp_path / "journal")) as daemon:
            (tmp_path / "ballast").write_bytes(b"")
            with contextlib.suppress(OSError), open(tmp_path / "ballast", "ab", buffering=0) as ballast:
                while True:
                    ballast.write(b"x" * 4096)
            port = flash(daemon)
            wait_until(lambda: daemon.ask("/readyz")[2]["degraded"], "the trouble")
            status, _, state = daemon.ask("/readyz")
            assert (status, len(state["degraded"])) == (200, 1)
            assert "the journal is not written: " in state["degraded"][0]
            (tmp_path / "ballast").unlink()
            wait_until(lambda: not daemon.ask("/readyz")[2]["degraded"], "the recovery")
            wait_until(lambda: len(history(daemon, f"?port={port}")["events"]) == 2, "what had waited")
            daemon.end()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("content", [b"my diary", b""])
def test_a_file_that_is_no_journal_is_refused_and_an_empty_one_is_begun(tmp_path, content):
    path = tmp_path / "journal"
    path.write_bytes(content)
    if not content:
        with serving("--journal", str(path)) as daemon:
            assert daemon.end()[0] == 0
        return
    result = subprocess.run(
        [sys.executable, "-m", "portwatch", "serve", *POLL, "--listen", "127.0.0.1:0", "--journal", str(path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 1
    assert "is not a journal of portwatch's" in result.stderr
    assert path.read_bytes() == content


@pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces as a container has them, which only root can")
def test_in_a_container_it_serves_as_it_does_outside(tmp_path, port):
    begin = f'mount --bind /proc {tmp_path} && exec unshare --pid --fork --kill-child --mount-proc "$@"'
    container = ["unshare", "--mount", "sh", "-c", begin, "sh"]
    with serving(
        "--procfs", str(tmp_path), "--port", str(port), engine=("--engine", "core"), prefix=container
    ) as daemon:
        (found,) = daemon.ports()
        assert found["pid"] == os.getpid()
        (found,) = daemon.ask(f"/api/v0/who?port={port}")[2]["ports"]
        assert found["ancestry"][-1]["pid"] == os.getpid()


def test_who_asks_by_way_of_a_proxy_is_not_shown_arguments(daemon, port):
    wait_until(lambda: daemon.ports(f"?port={port}"), "the port")
    for header in ("Forwarded", "X_Forwarded_For", "Via"):
        (found,) = daemon.ask(f"/api/v0/who?port={port}", **{header: "203.0.113.1"})[2]["ports"]
        assert found["ancestry"]
        assert found["command"] is None
        assert [one["command"] for one in found["holders"]] == [None]


def test_a_scraper_that_hangs_up_harms_nobody(daemon):
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", daemon.port)) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert daemon.ask("/metrics")[0] == 200
