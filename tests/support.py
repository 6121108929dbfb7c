"""Helpers shared by the tests: processes under test, a watcher that records events, and time limits."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from portwatch import PortWatcher
from portwatch.linux.procfs import stat

ROOT = Path(__file__).parent.parent

PATIENCE = int(os.environ.get("PORTWATCH_TEST_PATIENCE", "20"))
"""Seconds to wait for an expected condition before a test fails."""

ENGINES = os.environ.get("PORTWATCH_TEST_ENGINES", "core bcc poll").split()
"""The engines to test. "core-stable" is the engine "core" with the hook set "stable".

Some kernels cannot run all engines.
"""

ENGINE_NAMES = sorted({engine.partition("-")[0] for engine in ENGINES})
"""The names of these engines without their hook sets, as `--engine` accepts them."""

CORE_HOOKS = [engine.partition("-")[2] or "auto" for engine in ENGINES if engine.startswith("core")]
"""The hook sets to test with the core engine."""


EVENT_FIELDS = [
    "seq",
    "time",
    "kind",
    "origin",
    "proto",
    "family",
    "address",
    "port",
    "device",
    "mptcp",
    "v6only",
    "backlog",
    "exposure",
    "errno",
    "pid",
    "ns_pid",
    "start_time",
    "process",
    "uid",
    "netns",
    "netns_name",
    "cgroup",
    "container",
    "pod",
    "inode",
    "cookie",
    "sockets",
    "held_by",
    "lost",
    "opener",
    "engine",
]
"""The fields of an event in their documented order. Users depend on these names."""


def open_files():
    """Return the open descriptors of this process as (number, target) pairs.

    Other threads may close descriptors at any time, so a test for leaks can only check that no pair is new.
    """
    descriptors = set()
    for fd in os.listdir("/proc/self/fd"):
        # A descriptor may have been closed since. The descriptor that listdir() itself used always has been.
        with contextlib.suppress(FileNotFoundError):
            descriptors.add((fd, os.readlink(f"/proc/self/fd/{fd}")))
    return descriptors


def has_mptcp():
    """Return True if this kernel has MPTCP and allows its use."""
    try:
        socket.socket(proto=262).close()
    except OSError:
        return False
    return True


def wait_until(condition, what, patience=PATIENCE):
    """Wait until `condition()` is true and return its value; fail after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, f"timed out after {patience} s waiting for: {what}"
        time.sleep(0.005)
    return value


def replay(events):
    """Return the ports that are open after these events, sorted.

    Fail if an open event is about a socket that is already open. Fail if a close event is about a socket that
    is not open, or if its port differs from that of the open event.
    """
    open_ports = {}
    for event in events:
        if event.kind == "open":
            assert event.inode not in open_ports
            open_ports[event.inode] = event.port
        elif event.kind == "close":
            assert open_ports.pop(event.inode) == event.port
    return sorted(open_ports.values())


class Actor:
    """A process that runs code for a test.

    By default, the process creates a network namespace for itself. If `namespace` is a path, the process enters
    that namespace. If `namespace` is empty, it stays in the namespace of the tests. `prefix` is a command that
    starts the process as its child, such as unshare.
    """

    def __init__(self, namespace="new", prefix=()):
        self._created_at = time.time_ns()
        self._process = subprocess.Popen(
            [
                *prefix,
                sys.executable,
                str(Path(__file__).with_name("actor.py")),
                *([namespace] if namespace else []),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.do("os.getpid()")
        if prefix:
            self.pid = int(
                Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()[0]
            )
        self.netns = os.stat(self.namespace).st_ino
        comm, _, self.start_time = stat(self.pid)
        self.process = comm.decode()

    @property
    def namespace(self):
        return f"/proc/{self.pid}/ns/net"

    def owns(self, event):
        """Return True if the event is from this actor's network namespace.

        The kernel reuses the inodes of namespaces, so events from before the actor was created do not count.
        """
        return event.netns == self.netns and event.time > self._created_at

    def attempt(self, code):
        """Run code in the process and return its reply, {"value": ...} or {"error": ...}."""
        self._process.stdin.write(json.dumps(code) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def do(self, code):
        """Run code in the process and return its value. Fail if the code raises an exception."""
        reply = self.attempt(code)
        assert "error" not in reply, f"{code}: {reply['error']}"
        return reply["value"]

    def kill(self):
        self._process.kill()
        self._process.wait()

    def close(self):
        self.kill()
        self._process.stdin.close()
        self._process.stdout.close()


class RecordingWatcher:
    """A running PortWatcher that records its events.

    `engine` is an engine's name, or an engine and one of its hook sets ("core-stable").
    """

    def __init__(self, engine, **options):
        self.engine = engine
        self.delivered = []
        """Every event so far. `_lock` guards it."""
        self._lock = threading.Lock()
        name, _, hooks = engine.partition("-")
        self.watcher = PortWatcher(
            callback=self._record, engine=name, hooks=hooks or "auto", interval=0.05, **options
        )
        self.watcher.start()
        self.info = self.watcher.choice.engine.info

    def start_another(self, **options):
        """Start another watcher with the same engine and hook set."""
        return RecordingWatcher(self.engine, **options)

    def _record(self, event):
        with self._lock:
            self.delivered.append(event)

    def wait_for_delivery(self):
        """Wait until all events that were caused so far are delivered.

        Open and close a listener, the marker, and wait for its two events. All earlier events come before them.
        """
        with socket.create_server(("127.0.0.1", 0)) as marker:
            inode = os.fstat(marker.fileno()).st_ino
            wait_until(lambda: self._count(inode) == 1, "the marker's open")
        wait_until(lambda: self._count(inode) == 2, "the marker's close")

    def _count(self, inode):
        if failure := self.watcher._hub.failure:
            raise failure
        with self._lock:
            return sum(event.inode == inode for event in self.delivered)

    def events(self, *actors):
        """Call `wait_for_delivery`, then return the events from these actors' namespaces."""
        self.wait_for_delivery()
        with self._lock:
            return [event for event in self.delivered if any(actor.owns(event) for actor in actors)]

    def kinds(self, *actors):
        """Call `wait_for_delivery`, then return the kinds of the events from these actors' namespaces."""
        return [event.kind for event in self.events(*actors)]

    def ports(self, *actors):
        """Call `wait_for_delivery`, then return (kind, port) of each event from these actors' namespaces."""
        return [(event.kind, event.port) for event in self.events(*actors)]

    def gaps(self):
        """Return the gap events so far."""
        with self._lock:
            return [event for event in self.delivered if event.kind == "gap"]

    def listeners(self, actor):
        """Return the listeners in the actor's namespace. This reconciles, which may cause events."""
        return [listener for listener in self.watcher.listeners() if listener.socket.netns == actor.netns]

    def stop(self):
        self.watcher.stop()
