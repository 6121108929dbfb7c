"""What the tests against the kernel share: processes to watch, and a watcher to ask."""

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
"""Seconds after which something that should have happened is taken not to have."""

ENGINES = os.environ.get("PORTWATCH_TEST_ENGINES", "core bcc poll").split()
"""What is tested: engines, or one set of an engine's hooks ("core-stable"). Other kernels let others run."""

ENGINE_NAMES = sorted({one.partition("-")[0] for one in ENGINES})
"""The same, as `--engine` calls them."""

CORE_HOOKS = [one.partition("-")[2] or "auto" for one in ENGINES if one.startswith("core")]


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
"""What an event tells, in its order: others build on these names."""


def open_files():
    """Of this process. Other threads may close some of theirs meanwhile: only a new one is a leak."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile, as the folder itself is
            found.add((fd, os.readlink(f"/proc/self/fd/{fd}")))
    return found


def has_mptcp():
    """Whether this kernel has MPTCP, and lets it be used."""
    try:
        socket.socket(proto=262).close()
    except OSError:
        return False
    return True


def wait_until(condition, what, patience=PATIENCE):
    """Waits for something to become true, and returns it."""
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {patience} s in vain: {what}"
        time.sleep(0.005)
    return found


class Actor:
    """A process under test, in a network namespace of its own (or of another actor)."""

    def __init__(self, namespace="new", prefix=()):
        self._born = time.time_ns()
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
        """Whether an event is of our namespace, and not of an earlier one of the same number."""
        return event.netns == self.netns and event.time > self._born

    def attempt(self, code):
        """Does something, and returns the answer, which may be {"error": ...}."""
        self._process.stdin.write(json.dumps(code) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def do(self, code):
        """Does something that succeeds."""
        answer = self.attempt(code)
        assert "error" not in answer, f"{code}: {answer['error']}"
        return answer["value"]

    def kill(self):
        self._process.kill()
        self._process.wait()

    def close(self):
        self.kill()
        self._process.stdin.close()
        self._process.stdout.close()


class Watch:
    """A PortWatcher that keeps what it saw; on `engine`, or on one set of its hooks ("core-stable")."""

    def __init__(self, engine, **options):
        self.engine = engine
        self._seen = []
        self._lock = threading.Lock()
        name, _, hooks = engine.partition("-")
        self.watcher = PortWatcher(
            callback=self._keep, engine=name, hooks=hooks or "auto", interval=0.05, **options
        )
        self.watcher.start()
        self.info = self.watcher.choice.engine.info

    def another(self, **options):
        """A watcher on the same engine, that begins now."""
        return Watch(self.engine, **options)

    def _keep(self, event):
        with self._lock:
            self._seen.append(event)

    def settle(self):
        """Waits until all that has happened has been told: something that happens now comes later."""
        with socket.create_server(("127.0.0.1", 0)) as marker:
            inode = os.fstat(marker.fileno()).st_ino
            wait_until(lambda: self._count(inode) == 1, "the marker's open")
        wait_until(lambda: self._count(inode) == 2, "the marker's close")

    def _count(self, inode):
        if failure := self.watcher._hub.failure:
            raise failure
        with self._lock:
            return sum(event.inode == inode for event in self._seen)

    def events(self, *actors):
        """What was told of the namespaces of these actors, when it has settled."""
        self.settle()
        with self._lock:
            return [event for event in self._seen if any(actor.owns(event) for actor in actors)]

    def kinds(self, *actors):
        return [event.kind for event in self.events(*actors)]

    def ports(self, *actors):
        """(kind, port) of what was told, when it has settled."""
        return [(event.kind, event.port) for event in self.events(*actors)]

    def gaps(self):
        with self._lock:
            return [event for event in self._seen if event.kind == "gap"]

    def listeners(self, actor):
        """What is open in an actor's namespace; asks the kernel."""
        return [one for one in self.watcher.listeners() if one.socket.netns == actor.netns]

    def stop(self):
        self.watcher.stop()
