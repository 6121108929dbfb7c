import errno
import json
import os
import re
import socket
import subprocess
import sys
import threading
from dataclasses import replace

import click
import pytest
from click.testing import CliRunner
from commands import PORTWATCH, run
from support import EVENT_FIELDS

from portwatch import __version__
from portwatch.cli import main as cli
from portwatch.cli import options
from portwatch.cli.exit_codes import FAILED
from portwatch.cli.main import COMMANDS, main, portwatch
from portwatch.cli.render import text
from portwatch.event import Event, Listener
from portwatch.model import Holder, Process, Socket

LISTENER_FIELDS = {*EVENT_FIELDS} - {"seq", "kind"} | {"opened", "holders"}
EVIL = "\x1b]0;owned\x07\nroot"
POLL = ["--engine", "poll", "--interval", "0.05"]  # this engine needs no privileges


@pytest.fixture
def port():
    """A port that this process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def tid():
    """The ID of a thread of this process that is not the main thread."""
    ending = threading.Event()
    thread = threading.Thread(target=ending.wait)
    thread.start()
    yield thread.native_id
    ending.set()
    thread.join()


def invoke(*arguments):
    return CliRunner().invoke(portwatch, arguments, prog_name="portwatch", terminal_width=80)


@pytest.mark.parametrize("name", [(), *((name,) for name in COMMANDS)], ids=lambda name: name or "portwatch")
def test_help_fits_a_screen_and_shows_an_example(name):
    result = invoke(*name, "--help")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 80
    assert "Example: " in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_every_option(name):
    words = set(re.split(r"[\s,]+", invoke(name, "--help").stdout))
    command = portwatch.get_command(click.Context(portwatch), name)
    options = {option for param in command.params if isinstance(param, click.Option) for option in param.opts}
    assert options <= words


def test_help_shows_the_summary_of_every_command_without_cutting_it():
    lines = invoke("--help").stdout.partition("Commands:\n")[2].splitlines()
    assert not [line for line in lines if line.endswith("...")]
    commands = {name: portwatch.get_command(click.Context(portwatch), name) for name in COMMANDS}
    assert lines == [f"  {name:<7}  {command.short_help}" for name, command in commands.items()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch"], "No such command 'nosuch'"),
        (["tail", "--nosuch"], "No such option '--nosuch'"),
        (["tail", "extra"], "unexpected extra argument (extra)"),
        (["tail", "--engine", "magic"], "'magic' is not one of"),
        (["list", "--port", "http"], "'--port': 'http' is not a port or a range"),
        (["list", "--port", "0"], "'--port': '0' is outside 1-65535"),
        (["list", "--port", "90-80"], "'--port': '90-80' is reversed"),
        (["list", "--not-port", "80,"], "'--not-port': '' is not a port"),
        (["list", "--proto", "sctp"], "'sctp' is not one of tcp, udp"),
        (["list", "--exposure", "some"], "'some' is not one of loopback"),
        (["list", "--netns", "/nosuch"], "'/nosuch' cannot be opened as a network namespace"),
        (["list", "--netns", "/etc"], "'/etc' cannot be opened as a network namespace"),
        (
            ["list", "--netns", "/proc/self/ns/uts"],
            "'/proc/self/ns/uts' is a namespace, but not a network namespace",
        ),
        (
            ["list", "--netns", "/proc/self/stat"],
            "'/proc/self/stat' cannot be opened as a network namespace: it is not a namespace",
        ),
        (["list", "--netns", "nosuch"], "there is no network namespace 'nosuch'"),
        (["list", "--not-netns", "self,all"], "'--not-netns': excluding all network namespaces"),
        (["list", "--cgroup", "/nosuch"], "'--cgroup': there is no cgroup '/nosuch'"),
        (["list", "--not-cgroup", "/,"], "'--not-cgroup': the path of the cgroup is empty"),
        (
            ["list", "--container", "nosuch"],
            "'--container': no running container has an id that starts with 'nosuch'",
        ),
        (["list", "--procfs", "/etc"], "'--procfs' (or $HOST_PROC): '/etc' is not a procfs"),
        (["tail", "--interval", "0"], "'--interval'"),
        (["tail", "--interval", "nan"], "'--interval': 'nan' is not a number of seconds"),
        (["tail", "--interval", "inf"], "'--interval'"),
        (["doctor", "--engine", "magic"], "'magic' is not one of"),
        (["who"], "Missing argument 'PORT'"),
        (["who", "http"], "'PORT': 'http' is not a port: try 8080, tcp/8080 or udp/53"),
        (["who", "tcp/"], "'PORT': '' is not a port"),
        (["wait", "0"], "'PORT': '0' is not a port"),
        (["wait", "65536"], "'PORT': '65536' is not a port"),
        (["wait", "9" * 5000], "is not a port"),
        (["kill", "sctp/80"], "'PORT': 'sctp' is not a protocol: try tcp/8080 or udp/53"),
        (["kill", "80", "--port", "81"], "No such option '--port'"),
        (["kill", "80", "--signal", "NICE"], "'--signal': 'NICE' is not a signal: try TERM, KILL or 9"),
        (["kill", "80", "--signal", "0"], "'--signal': '0' is not a signal"),
        (["wait", "80", "--timeout", "nan"], "'--timeout': 'nan' is not a number of seconds"),
        (["wait", "80", "--timeout", "-1"], "'--timeout'"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_a_usage_error_exits_with_2_and_says_what_is_wrong(arguments, message):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not result.stdout


@pytest.mark.parametrize("option", ["--pid", "--not-pid"])
@pytest.mark.parametrize("command", ["tail", "list", "who 80", "wait 80", "kill 80", "serve"])
def test_a_pid_without_a_process_is_a_usage_error(command, option):
    result = run(*command.split(), "--engine", "poll", option, "2147483647")
    assert (result.returncode, result.stdout) == (2, "")
    assert "there is no process 2147483647" in result.stderr


@pytest.mark.parametrize("option", ["--pid", "--not-pid"])
@pytest.mark.parametrize("command", ["tail", "list"])
def test_pid_with_a_thread_id_exits_with_2_and_names_the_process(command, option, tid):
    result = run(command, "--engine", "poll", option, str(tid))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"portwatch: {tid} is a thread of process {os.getpid()}: use {os.getpid()}\n"


def test_hooks_with_an_engine_other_than_core_exits_with_2():
    result = run("tail", "--engine", "poll", "--hooks", "stable")
    assert (result.returncode, result.stdout) == (2, "")
    assert "only the core engine lets you choose its hooks" in result.stderr


def test_netns_exits_with_3_if_the_user_may_not_open_the_namespace(monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(options.fcntl, "ioctl", refuse)
    monkeypatch.setattr(cli, "end_on_signals", lambda **_: None)
    monkeypatch.setattr(sys, "argv", ["portwatch", "list", "--netns", "self"])
    with pytest.raises(SystemExit) as ending:
        main()
    assert ending.value.code == 3


def test_the_default_command_is_tail():
    result = run("--port", "x")
    assert result.returncode == 2
    assert "portwatch tail --help" in result.stderr


def test_version_is_printed():
    result = run("--version")
    assert (result.returncode, result.stdout) == (0, f"portwatch, version {__version__}\n")


def test_list_prints_one_json_listener_per_line(port):
    result = run("list", "--json", "--engine", "poll", "--netns", "self", "--port", str(port))
    assert (result.returncode, result.stderr) == (0, "")
    [line] = result.stdout.splitlines()
    listener = json.loads(line)
    assert set(listener) == LISTENER_FIELDS
    assert listener["port"] == port
    assert listener["opened"] is None
    assert {"pid", "start_time", "process", "uid", "container"} == set(listener["holders"][0])


def test_list_accepts_no_failures_without_effect(port):
    result = run("list", "--engine", "poll", "--netns", "self", "--port", str(port), "--no-failures")
    assert (result.returncode, result.stderr) == (0, "")


def test_list_prints_a_table_with_the_process(port):
    result = run("list", "--engine", "poll", "--netns", "self", "--port", str(port))
    head, row = result.stdout.splitlines()
    assert head.split() == ["PROTO", "ADDRESS", "REACHABLE", "FROM", "USER", "PROCESS"]
    assert row.startswith(f"tcp    127.0.0.1:{port}")
    assert "\x1b" not in result.stdout


def test_tail_prints_one_json_event_per_line(port):
    with socket.socket() as late:
        late.bind(("127.0.0.1", 0))
        ports = [port, late.getsockname()[1]]
        with subprocess.Popen(
            [*PORTWATCH, "tail", "--json", *POLL, "--netns", "self", "--port", ",".join(map(str, ports))],
            stdout=subprocess.PIPE,
            text=True,
        ) as tail:
            try:
                snapshot = json.loads(tail.stdout.readline())
                late.listen()
                event = json.loads(tail.stdout.readline())
            finally:
                tail.terminate()
    assert set(snapshot) == set(event) == {*EVENT_FIELDS}
    assert [snapshot["port"], event["port"]] == ports
    assert [snapshot["origin"], event["origin"]] == ["snapshot", "event"]
    assert event["seq"] > snapshot["seq"]
    assert tail.returncode == 0


def test_a_gap_has_the_same_json_fields_as_every_event():
    assert set(json.loads(Event(7, 1, "gap", "event", lost=3).to_json())) == {*EVENT_FIELDS}


def test_control_characters_in_names_are_escaped():
    evil = Process(4242, 0, EVIL, 0)
    evil_socket = Socket(1, 2, 3, "tcp", "ipv4", "127.0.0.1", 80, device=EVIL, netns_name=EVIL)
    failure = Event(
        1,
        0,
        "bind_failed",
        "event",
        "tcp",
        "ipv4",
        "127.0.0.1",
        80,
        pid=1,
        process=EVIL,
        netns=3,
        netns_name=EVIL,
    )
    close = Event(1, 0, "close", "event", "tcp", "ipv4", "127.0.0.1", 80, pid=1, process="a", opener=evil)
    held_failure = Event(
        1,
        0,
        "bind_failed",
        "event",
        "tcp",
        "ipv4",
        "127.0.0.1",
        80,
        device=EVIL,
        errno=errno.errorcode[errno.EADDRINUSE],
        held_by=(Holder(1, EVIL, None, "bound"),),
    )
    lines = [
        *map(text.event_line, (failure, close, held_failure)),
        *text.listener_table([Listener("event", 0, evil_socket, 1, evil, (evil,))], None),
    ]
    assert all(line.isprintable() for line in lines)
    assert [line.count(r"\x1b]0;owned\x07\nroot") for line in lines] == [2, 1, 2, 0, 3]


def test_a_line_names_the_container_if_there_is_one_and_otherwise_a_foreign_namespace():
    here = os.stat("/proc/self/ns/net").st_ino
    elsewhere = Event(1, 0, "open", "event", "tcp", "ipv4", "0.0.0.0", 80, pid=1, netns=1, netns_name="blue")
    assert "namespace blue" in text.event_line(elsewhere)
    assert "namespace net:[1]" in text.event_line(replace(elsewhere, netns_name=None))
    contained = replace(elsewhere, container="4f" * 32)
    assert "container 4f4f4f4f4f4f," in text.event_line(contained)
    assert "blue" not in text.event_line(contained)
    assert "blue" not in text.event_line(replace(elsewhere, netns=here))


REFUSED = Event(
    1,
    0,
    "bind_failed",
    "event",
    "tcp",
    "ipv4",
    "0.0.0.0",
    8080,
    pid=3391,
    process="node",
    uid=3_000_000_001,
    errno="EADDRINUSE",
    held_by=(Holder(3357, "java", None, "listening"),),
)


def test_a_failure_names_the_container_of_the_holder():
    line = text.event_line(replace(REFUSED, held_by=(Holder(3357, "java", "4f" * 32, "listening"),)))
    assert line.endswith("EADDRINUSE, java (3357) in container 4f4f4f4f4f4f is listening")


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (
            None,
            "tcp 0.0.0.0:8080             node (3391), 3000000001, EADDRINUSE, java (3357) is listening",
        ),
        (100, "tcp 0.0.0.0:8080             node (3391), java (3357) is listening"),
        (80, "tcp 0.0.0.0:8080    node (3391), java (3357) is listening"),
        (60, "tcp 0.0.0.0:8080    node (3391), java"),
    ],
)
def test_a_line_drops_its_least_important_parts_on_a_narrow_terminal(width, expected):
    line = text.event_line(REFUSED, width=width)
    assert line.partition("bind failed   ")[2] == expected
    assert width is None or len(line) <= width


def test_a_table_drops_columns_on_a_narrow_terminal():
    listening = Socket(1, 2, None, "tcp", "ipv4", "127.0.0.1", 80)
    listeners = [Listener("event", 0, listening, 1, None, (Process(4242, 0, "a-program", 0),))]
    heads = [text.listener_table(listeners, width)[0].split() for width in (60, 48, 40)]
    assert heads == [
        ["PROTO", "ADDRESS", "REACHABLE", "FROM", "USER", "PROCESS"],
        ["PROTO", "ADDRESS", "USER", "PROCESS"],
        ["PROTO", "ADDRESS", "PROCESS"],
    ]
    assert text.listener_table(listeners, 40)[1].endswith("a-program (4242)")
    assert len(text.listener_table(listeners, 20)[1]) == 20


def test_control_characters_in_errors_are_escaped(capsys):
    with pytest.raises(SystemExit):
        cli._fail(f"{EVIL} (4242) has ended", FAILED)
    assert capsys.readouterr().err == "portwatch: \\x1b]0;owned\\x07\\nroot (4242) has ended\n"


def test_json_with_control_characters_stays_on_one_line():
    line = Event(1, 0, "open", "event", process=EVIL).to_json()
    assert line.isprintable()
    assert json.loads(line)["process"] == EVIL


@pytest.mark.parametrize("name", ["9", "kill", "SIGKILL"])
def test_kill_accepts_the_number_or_the_name_of_a_signal(port, name):
    result = run("kill", f"tcp/{port}", *POLL, "--dry-run", "--signal", name)
    assert (result.returncode, result.stderr) == (0, "")


def test_who_needs_no_privileges_for_own_processes(port):
    result = run("who", f"tcp/{port}", "--engine", "poll", "--netns", "self", "--json")
    (listener,) = map(json.loads, result.stdout.splitlines())
    assert set(listener) == {*LISTENER_FIELDS, "command", "ancestry"}
    assert listener["pid"] == listener["ancestry"][-1]["pid"] == os.getpid()
    (holder,) = listener["holders"]
    assert holder["command"] == listener["command"]
    assert {"pid", "start_time", "process", "uid", "container", "command", "ancestry"} == set(holder)


def test_wait_works_with_the_poll_engine(port):
    assert run("wait", f"tcp/{port}", *POLL).returncode == 0
    assert run("wait", f"tcp/{port}", *POLL, "--gone", "--timeout", "0.1").returncode == 124
