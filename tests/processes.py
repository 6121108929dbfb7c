"""Helpers that start child processes and describe processes as portwatch does."""

import subprocess
import sys
from contextlib import contextmanager

from portwatch.linux.lineage import Identity
from portwatch.linux.procfs import stat
from portwatch.model import Process

_PARENT = """
import subprocess, sys
print(subprocess.Popen(['sleep', '600']).pid, flush=True)
sys.stdin.read()
"""


def identity(pid):
    return Identity(pid, stat(pid)[2])


def process(pid, start_time=None):
    return Process(pid, start_time or stat(pid)[2], "x", 0)


def start_parent():
    """Start a child that starts a grandchild. Return the child as a Popen, and the pid of the grandchild."""
    child = subprocess.Popen(
        [sys.executable, "-c", _PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return child, int(child.stdout.readline())


def end(child):
    child.kill()
    child.wait()


@contextmanager
def sleeping():
    """Yield a child that sleeps until the end of the block."""
    child = subprocess.Popen(["sleep", "600"])
    try:
        yield child
    finally:
        end(child)
