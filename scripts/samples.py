"""Write the sample outputs in the documentation: samples.py [--check].

The functions that print portwatch's real output make each sample from fixed values. In a Markdown file, a
sample is between `<!-- sample: NAME -->` and `<!-- /sample -->`. tests/test_docs.py checks that the samples are
up to date.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from portwatch.cli.render import port_details, text
from portwatch.engines.choice import Choice
from portwatch.event import Event, Listener
from portwatch.linux.ancestry import Ancestor, ProcessDetails
from portwatch.model import Holder, Process, Socket
from portwatch.outputs.metrics import ScrapeData, Tally, exposition
from portwatch.outputs.port_series import SeriesOptions
from portwatch.port.forwarders import Forwarder
from portwatch.port.lookup import LookupResult, Port
from portwatch.server.stream import frame_of
from portwatch.timestamps import parse_iso_time
from portwatch.watch.counts import Counts

ROOT = Path(__file__).parent.parent
ZONE, WIDTH = "UTC", 120
"""The time zone and the terminal width that the samples are made for."""
USERS = {0: "root", 995: "tomcat", 1001: "deploy"}
CONTAINER = "4f1d0c9a77be" + "0" * 52
_BLOCK = re.compile(r"(<!-- sample: ([\w-]+) -->\n).*?(<!-- /sample -->)", re.DOTALL)


def at(clock: str) -> int:
    """Return a time on the day of the samples, in nanoseconds since the epoch."""
    nanoseconds = parse_iso_time(f"2026-11-21T{clock}Z")
    assert nanoseconds is not None
    return nanoseconds


SSHD = Process(812, at("03:50:00.11"), "sshd", 0, 812, "/system.slice/ssh.service")
JAVA = Process(3357, at("05:34:36.2"), "java", 995, 3357, "/system.slice/tomcat.service")
NODE = Process(3391, at("05:34:40.9"), "node", 1001, 3391, "/user.slice/user-1001.slice/session-3.scope")
PROXY = Process(2201, at("04:02:11"), "docker-proxy", 0, 2201, "/system.slice/docker.service")
NGINX = Process(2260, at("04:02:11.4"), "nginx", 0, 1, f"/system.slice/docker-{CONTAINER}.scope", CONTAINER)

SSH_SOCKET = Socket(0x1001, 20481, 4026531833, "tcp", "ipv4", "0.0.0.0", 22, backlog=128)  # noqa: S104
JAVA_SOCKET = Socket(0x138A, 345678, 4026531833, "tcp", "ipv6", "::", 8080, v6only=False, backlog=100)
NODE_SOCKET = Socket(0x1402, 345701, 4026531833, "tcp", "ipv4", "0.0.0.0", 8080)  # noqa: S104
LOCAL_SOCKET = Socket(0x1410, 345810, 4026531833, "tcp", "ipv4", "127.0.0.1", 3000, backlog=511)
PROXY_SOCKET = Socket(0x1177, 31002, 4026531833, "tcp", "ipv4", "0.0.0.0", 80, backlog=4096)  # noqa: S104

PROXY_COMMAND = (
    "/usr/bin/docker-proxy -proto tcp -host-ip 0.0.0.0 -host-port 80 "
    "-container-ip 172.17.0.2 -container-port 80"
)
DETAILS = {
    PROXY.pid: ProcessDetails(
        tuple(PROXY_COMMAND.split(" ")),
        (Ancestor(1, "systemd"), Ancestor(911, "dockerd"), Ancestor(2201, "docker-proxy")),
    ),
    NODE.pid: ProcessDetails(
        ("node", "server.js"), (Ancestor(1, "systemd"), Ancestor(3311, "bash"), Ancestor(3391, "node"))
    ),
}
FORWARDER = Forwarder("docker stop 4f1d0c9a77be", "172.17.0.2:80", CONTAINER, (NGINX,))

OPEN_AT_START = Event.about(
    SSH_SOCKET,
    SSHD,
    seq=1,
    time=at("05:34:38.399"),
    kind="open",
    origin="snapshot",
    opener=SSHD,
    sockets=1,
    engine="core",
)
OPENED = Event.about(
    JAVA_SOCKET,
    JAVA,
    seq=2,
    time=at("05:34:39.343123456"),
    kind="open",
    origin="event",
    opener=JAVA,
    sockets=1,
    engine="core",
)
REFUSED = replace(
    Event.about(
        NODE_SOCKET,
        NODE,
        seq=3,
        time=at("05:34:41.120"),
        kind="bind_failed",
        origin="event",
        opener=NODE,
        sockets=0,
        engine="core",
        errno="EADDRINUSE",
    ),
    held_by=(Holder(3357, "java", None, "listening"),),
)
CLOSED = replace(OPENED, seq=4, time=at("05:34:52.871"), kind="close", sockets=0)

LISTENERS = [
    Listener("snapshot", None, SSH_SOCKET, 1, SSHD, (SSHD,), "core"),
    Listener("event", at("05:34:39.343123456"), JAVA_SOCKET, 1, JAVA, (JAVA,), "core"),
    Listener("snapshot", None, LOCAL_SOCKET, 1, NODE, (NODE,), "core"),
    Listener("snapshot", None, PROXY_SOCKET, 1, PROXY, (PROXY,), "core"),
]


def _lookup(*listeners: Listener, blockers: tuple[Holder, ...] = ()) -> LookupResult:
    choice = Choice(SimpleNamespace(name="core"))  # type: ignore[arg-type]  # rendering uses only the engine's name
    holders = tuple(holder for listener in listeners for holder in listener.holders)
    return LookupResult(choice, listeners, holders, tuple(LISTENERS), blockers)


def _command(line: str, output: Iterator[str] | list[str] | str) -> str:
    return "\n".join([f"$ {line}", *([output] if isinstance(output, str) else output)])


def _tail() -> str:
    events = (OPEN_AT_START, OPENED, REFUSED, CLOSED)
    return _command("sudo portwatch", [text.event_line(event, width=WIDTH) for event in events])


def _history() -> str:
    lines = [text.event_line(event, dated=True) for event in (OPENED, REFUSED, CLOSED)]
    return _command("portwatch history --journal /var/lib/portwatch/journal --since 05:34 --port 8080", lines)


def _list() -> str:
    return _command("sudo portwatch list", text.listener_table(LISTENERS, WIDTH))


def _who() -> str:
    return _command("sudo portwatch who 80", port_details.detail_lines(_lookup(LISTENERS[3])))


def _who_free_port() -> str:
    result = _lookup(blockers=(Holder(3120, "python3", None, "bound"),))
    return _command(
        "sudo portwatch who 9000", port_details.no_listener_message(Port(9000, ("tcp", "udp")), result)
    )


def _kill() -> str:
    return _command("sudo portwatch kill 3000 --dry-run", port_details.summary_lines(_lookup(LISTENERS[2])))


def _event() -> str:
    return json.dumps(REFUSED.as_dict(), indent=2)


def _listener() -> str:
    return json.dumps(LISTENERS[1].as_dict(), indent=2)


def _stream() -> str:
    frame = frame_of(OPENED).decode().rstrip("\n")
    shortened = re.sub(r'("kind":"open",).*', r"\1 ...}", frame)
    return _command("curl -N http://localhost:9935/api/v0/events", f"retry: 1000\n\n{shortened}")


def _metrics() -> str:
    tally = Tally()
    for event in (OPENED, REFUSED, CLOSED):
        tally(event)
    shown = SeriesOptions(pid=False, ephemeral=range(0), expected=(("tcp", 8080),), max_series=10_000)
    data = ScrapeData(LISTENERS[:2], shown, {}, Counts(), {"kernel": 0}, 0)
    lines = exposition(data, tally, "")[0].decode().splitlines()
    names = (
        "portwatch_listening_port",
        "portwatch_expected_port_up",
        'portwatch_listeners{exposure="all"',
        'portwatch_listeners{proto="tcp",exposure="all"',
        'portwatch_bind_failures_total{errno="EADDRINUSE",proto="tcp"',
        'portwatch_bind_failures_total{proto="tcp",errno="EADDRINUSE"',
    )
    return "\n".join(line for line in lines if line.startswith(names))


SAMPLES: dict[str, tuple[str, Callable[[], str]]] = {
    "tail": ("", _tail),
    "list": ("", _list),
    "who": ("", _who),
    "who-free-port": ("", _who_free_port),
    "kill": ("", _kill),
    "history": ("", _history),
    "event": ("json", _event),
    "listener": ("json", _listener),
    "stream": ("", _stream),
    "metrics": ("", _metrics),
}
"""For each sample, the language of its code block and the function that makes it."""


@contextmanager
def _fixed_machine() -> Iterator[None]:
    """Give rendering fixed values instead of those of this machine.

    These are the time zone, the user names, the network namespace of this process, and data from /proc.
    """
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, TZ=ZONE))
        time.tzset()
        stack.enter_context(patch.object(text, "user_name", USERS.__getitem__))
        stack.enter_context(patch.object(port_details, "user_name", USERS.__getitem__))
        stack.enter_context(patch.object(text, "_own_netns", lambda: SSH_SOCKET.netns))
        stack.enter_context(patch.object(port_details, "details_of", lambda process: DETAILS[process.pid]))
        stack.enter_context(
            patch.object(
                port_details, "forwarder_of", lambda process, *_: FORWARDER if process == PROXY else None
            )
        )
        yield
    time.tzset()


def sample(name: str) -> str:
    """Return a sample as a Markdown code block."""
    language, make = SAMPLES[name]
    with _fixed_machine():
        return f"```{language}\n{make()}\n```\n"


def documents() -> list[Path]:
    """Return the Markdown files that may have samples."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(document: str) -> list[tuple[str, str]]:
    """Return the name and the code block of each sample in a document."""
    return [
        (found[2], found[0].removeprefix(found[1]).removesuffix(found[3]))
        for found in _BLOCK.finditer(document)
    ]


def filled(document: str) -> str:
    """Return a document with its samples replaced by current ones."""
    return _BLOCK.sub(lambda found: found[1] + sample(found[2]) + found[3], document)


def main(arguments: list[str]) -> str | None:
    """Update the samples in the documents. With --check, only return an error that names outdated documents."""
    stale = [path for path in documents() if filled(path.read_text()) != path.read_text()]
    if "--check" in arguments:
        return f"run scripts/samples.py: {', '.join(map(str, stale))}" if stale else None
    for path in stale:
        path.write_text(filled(path.read_text()))
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
