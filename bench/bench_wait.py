"""Time from listen() to the exit of a process that waits for the port, and the CPU time of the wait."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from common import COMMAND, begin, installed, judge, percentile, show

from portwatch import Filter, Scope
from portwatch.engines.protocol import Options
from portwatch.port.lookup import Port, PortQuery
from portwatch.port.wait import PortWait, watch_port

RUNS = {"portwatch wait": 100}
FEWER_RUNS = 30
HEAD_START = 0.5
"""Seconds that a waiter has to start. portwatch needs 0.15."""
LONG = 10
"""Seconds of the wait whose CPU time is measured."""


def waiters(port):
    """Yield the name and the command of each waiter, a program that exits when the port is open."""
    yield "portwatch wait", [COMMAND, "wait", f"tcp/{port}"]
    if installed("nc"):
        probe = f"nc -z 127.0.0.1 {port} 2>/dev/null"
        for pause in ("", "sleep 0.1", "sleep 1"):
            name = f"until nc -z; do {pause or ':'}; done"
            yield name, ["sh", "-c", f"until {probe}; do {pause or ':'}; done"]
    if installed("ss"):
        probe = f"ss -Hlnt | grep -q ':{port} '"
        yield "until ss -Hlnt | grep; do sleep 0.1; done", ["sh", "-c", f"until {probe}; do sleep 0.1; done"]


def measure(name, wait):
    """Start a waiter, and listen `wait` seconds later.

    Return the milliseconds from listen() to the exit of the waiter, and the CPU seconds that it used.
    """
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        command = dict(waiters(server.getsockname()[1]))[name]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as waiter:
            try:
                time.sleep(wait)
                start = time.perf_counter()
                server.listen()
                _, status, usage = os.wait4(waiter.pid, 0)
            except BaseException:
                waiter.kill()  # otherwise a shell loop would never end
                raise
            delay = time.perf_counter() - start
            waiter.returncode = os.waitstatus_to_exitcode(status)
    if waiter.returncode:
        raise SystemExit(f"   {name} exited with {waiter.returncode}")
    return 1000 * delay, usage.ru_utime + usage.ru_stime


def measure_without_exit():
    """Return the milliseconds from listen() until `portwatch wait` would start to exit."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        socket_scope = Scope(netns=Filter((os.stat("/proc/self/ns/net").st_ino,)))
        query = PortQuery(Port(server.getsockname()[1], ("tcp",)), socket_scope)
        with watch_port(query, "auto", Options(failures=False)) as watcher, ThreadPoolExecutor() as pool:
            port_wait = PortWait(query, watcher)
            result = pool.submit(lambda: (port_wait.until_open(LONG), time.perf_counter()))
            time.sleep(HEAD_START)
            start = time.perf_counter()
            server.listen()
            is_open, end = result.result()
    if not is_open:
        raise SystemExit(f"   the listener was not seen within {LONG} s")
    return 1000 * (end - start)


def percentiles(delays):
    """Format the percentiles of delays in milliseconds."""
    return " · ".join(f"p{p} {percentile(delays, p):,.1f} ms" for p in (50, 90, 99))


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated by SIGTERM"))
    begin("Waiting for a port: from listen() to the exit of the waiter, as its parent sees it")
    delays = [measure_without_exit() for _ in range(FEWER_RUNS)]
    show("portwatch wait, before its exit", f"{percentiles(delays)}; the rest is the exit of the process")
    for name, _ in waiters(0):
        delays = [measure(name, HEAD_START + random.random())[0] for _ in range(RUNS.get(name, FEWER_RUNS))]
        if name in RUNS:
            judge(f"{name}, p50", percentile(delays, 50), "ms", most=3)
        show(name, f"{percentiles(delays)}; CPU in a wait of {LONG} s: {measure(name, LONG)[1]:.2f} s")


if __name__ == "__main__":
    main()
