"""Signals reach all the processes that were shown, or none."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from fake_engine import socket

from portwatch import PortwatchError, Scope
from portwatch.event import Listener
from portwatch.linux.procfs import stat
from portwatch.model import Process
from portwatch.port import kill
from portwatch.port.lookup import Port, PortQuery

QUERY = PortQuery(Port(8080, ("tcp",)), Scope())


@pytest.fixture
def child():
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield child
    child.communicate()


class StubWatcher:
    """A watcher that lists one socket on the port, with these processes as its holders."""

    def __init__(self, *holders):
        self.holders = holders

    def listeners(self):
        return [Listener("snapshot", None, socket(), 1, self.holders[0], self.holders)]


def process_of(child):
    return Process(child.pid, stat(child.pid)[2], "child", 0)


def test_a_process_that_was_shown_and_still_holds_the_port_is_signalled(child):
    shown = process_of(child)
    kill.signal_holders(QUERY, (shown,), signal.SIGTERM, StubWatcher(shown))
    assert child.wait() == -signal.SIGTERM


def test_a_later_process_with_the_same_pid_is_not_signalled_even_if_the_listing_is_stale(child):
    earlier = replace(process_of(child), start_time=1)
    with pytest.raises(PortwatchError, match="no process was signalled"):
        kill.signal_holders(QUERY, (earlier,), signal.SIGTERM, StubWatcher(earlier))
    assert child.poll() is None


def test_no_process_is_signalled_if_one_of_the_shown_processes_has_ended(child):
    shown = process_of(child)
    ended = Process(2**22 + 1, 1, "ended", 0)  # above the highest possible pid
    with pytest.raises(PortwatchError, match="ended"):
        kill.signal_holders(QUERY, (shown, ended), signal.SIGTERM, StubWatcher(shown, ended))
    assert child.poll() is None


def test_signal_holders_closes_its_pidfds_if_it_raises(child):
    shown = process_of(child)
    before = os.listdir("/proc/self/fd")
    for start_time in (1, shown.start_time):
        with pytest.raises(PortwatchError):
            kill.signal_holders(
                QUERY,
                (replace(shown, start_time=start_time),),
                signal.SIGTERM,
                StubWatcher(Process(1, 1, "x", 0)),
            )
    assert os.listdir("/proc/self/fd") == before


def test_pid_1_may_be_signalled_only_in_a_private_pid_namespace(monkeypatch):
    monkeypatch.setattr(kill.procfs, "shows_kernel_pids", lambda: True)
    assert "systemctl list-sockets" in kill.why_not_signalled(Process(1, 1, "systemd", 0))
    monkeypatch.setattr(kill.procfs, "shows_kernel_pids", lambda: False)
    assert kill.why_not_signalled(Process(1, 1, "sh", 0)) is None


def test_no_process_is_signalled_on_a_kernel_without_pidfds(child, monkeypatch):
    def refuse(_):
        raise OSError(38, "Function not implemented")

    shown = process_of(child)
    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(PortwatchError, match="no pidfd"):
        kill.signal_holders(QUERY, (shown,), signal.SIGTERM, StubWatcher(shown))
    assert child.poll() is None
