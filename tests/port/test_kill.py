"""Signals reach who was shown, or nobody."""

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

QUESTION = PortQuery(Port(8080, ("tcp",)), Scope())


@pytest.fixture
def child():
    made = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield made
    made.communicate()


class Listed:
    """A watcher in whose eyes these processes hold the port."""

    def __init__(self, *holders):
        self.holders = holders

    def listeners(self):
        return [Listener("snapshot", None, socket(), 1, self.holders[0], self.holders)]


def process_of(child):
    return Process(child.pid, stat(child.pid)[2], "child", 0)


def test_who_was_shown_and_still_holds_the_port_is_signalled(child):
    shown = process_of(child)
    kill.signal_holders(QUESTION, (shown,), signal.SIGTERM, Listed(shown))
    assert child.wait() == -signal.SIGTERM


def test_another_process_of_the_same_pid_is_not_whatever_is_listed(child):
    earlier = replace(process_of(child), start_time=1)
    with pytest.raises(PortwatchError, match="no process was signalled"):
        kill.signal_holders(QUESTION, (earlier,), signal.SIGTERM, Listed(earlier))
    assert child.poll() is None


def test_where_one_has_changed_the_others_are_not_signalled_either(child):
    shown = process_of(child)
    ended = Process(2**22 + 1, 1, "ended", 0)  # above the highest pid that there can be
    with pytest.raises(PortwatchError, match="ended"):
        kill.signal_holders(QUESTION, (shown, ended), signal.SIGTERM, Listed(shown, ended))
    assert child.poll() is None


def test_no_descriptor_is_left_open(child):
    shown = process_of(child)
    before = os.listdir("/proc/self/fd")
    for start_time in (1, shown.start_time):
        with pytest.raises(PortwatchError):
            kill.signal_holders(
                QUESTION,
                (replace(shown, start_time=start_time),),
                signal.SIGTERM,
                Listed(Process(1, 1, "x", 0)),
            )
    assert os.listdir("/proc/self/fd") == before


def test_the_machines_first_process_is_spared(monkeypatch):
    monkeypatch.setattr(kill.procfs, "shows_kernel_pids", lambda: True)
    assert "systemctl list-sockets" in kill.why_not_signalled(Process(1, 1, "systemd", 0))
    monkeypatch.setattr(kill.procfs, "shows_kernel_pids", lambda: False)
    assert kill.why_not_signalled(Process(1, 1, "sh", 0)) is None


def test_a_kernel_without_pidfd_is_no_reason_to_signal_blindly(child, monkeypatch):
    def refuse(_):
        raise OSError(38, "Function not implemented")

    shown = process_of(child)
    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(PortwatchError, match="no pidfd"):
        kill.signal_holders(QUESTION, (shown,), signal.SIGTERM, Listed(shown))
    assert child.poll() is None
