"""Time to list all listeners with their owners on a busy machine, compared with ss, psutil and lsof."""

import os
import resource
import signal
import socket
import statistics
from contextlib import ExitStack

import psutil
from common import COMMAND, begin, forked, installed, judge, run, seconds, show

from portwatch.engines.core.engine import CoreEngine

PROCESSES = 500
LISTENERS = 10
FILES = 800
ROUNDS = 7
SLOW_ROUNDS = 3
"""Rounds for lsof and psutil, which are slow."""


def hold(number, ready):
    """Open listeners on an address that only this process uses, and FILES files in total. Then sleep."""
    address = f"127.1.{number // 250}.{number % 250 + 1}"
    servers = [socket.create_server((address, 20_000 + port)) for port in range(LISTENERS)]
    null = os.open(os.devnull, os.O_RDONLY)
    while os.dup(null) < FILES - 1:
        pass
    os.write(ready, b"x")
    os.close(ready)
    signal.pause()
    del servers


def start_processes(stack):
    """Start the processes. Return once all of them have opened their files."""
    limit = max(FILES + 50, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    read_end, ready = os.pipe()
    for number in range(PROCESSES):
        stack.enter_context(forked(lambda number=number: hold(number, ready)))
    os.close(ready)
    for _ in range(PROCESSES):
        if not os.read(read_end, 1):
            raise SystemExit("   a process exited during setup; is there enough memory for 400,000 files?")


def snapshot_once():
    engine = CoreEngine()
    count = len(engine.snapshot().sockets)
    engine.detach()
    assert count >= PROCESSES * LISTENERS, count


def main():
    begin(f"Snapshot with owners: {PROCESSES} processes, each with {FILES} files and {LISTENERS} listeners")
    with ExitStack() as stack:
        start_processes(stack)
        engine = CoreEngine()
        stack.callback(engine.detach)
        ways = {
            "engine.snapshot()": engine.snapshot,
            "CoreEngine().snapshot(), loading included": snapshot_once,
            "portwatch list": lambda: run(COMMAND, "list", "--engine", "core"),
            "ss -lntp": lambda: run("ss", "-lntp"),
            "psutil.net_connections": lambda: psutil.net_connections("inet"),
            "lsof -nP -iTCP -sTCP:LISTEN": lambda: run("lsof", "-nP", "-iTCP", "-sTCP:LISTEN"),
            "ss -lnt, which shows no owners": lambda: run("ss", "-lnt"),
        }
        if not installed("lsof"):
            del ways["lsof -nP -iTCP -sTCP:LISTEN"]
        engine.snapshot()
        times = {name: [] for name in ways}
        for round_number in range(ROUNDS):
            for name, way in ways.items():
                if round_number < SLOW_ROUNDS or name not in (
                    "lsof -nP -iTCP -sTCP:LISTEN",
                    "psutil.net_connections",
                ):
                    times[name].append(seconds(way))
    medians = {name: statistics.median(values) for name, values in times.items()}
    judge("times faster than `ss -lntp`", medians["ss -lntp"] / medians["engine.snapshot()"], "", least=15)
    for name, value in medians.items():
        show(name, f"{value:.3f} s   ({medians['ss -lntp'] / value:.1f} times as fast as `ss -lntp`)")


if __name__ == "__main__":
    main()
