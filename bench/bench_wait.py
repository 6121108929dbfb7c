"""From the listen to the exit of whoever waits for it, as their parent sees it; and what the wait costs."""

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
"""Seconds for the waiter to start in, of which portwatch takes 0.15."""
LONG = 10


def waiters(port):
    """Command lines that end when somebody listens on the port, the busiest loop first."""
    yield "portwatch wait", [COMMAND, "wait", f"tcp/{port}"]
    if installed("nc"):
        probe = f"nc -z 127.0.0.1 {port} 2>/dev/null"
        for pause in ("", "sleep 0.1", "sleep 1"):
            name = f"until nc -z; do {pause or ':'}; done"
            yield name, ["sh", "-c", f"until {probe}; do {pause or ':'}; done"]
    if installed("ss"):
        probe = f"ss -Hlnt | grep -q ':{port} '"
        yield "until ss -Hlnt | grep; do sleep 0.1; done", ["sh", "-c", f"until {probe}; do sleep 0.1; done"]


def of_one(name, wait):
    """Milliseconds from the call of listen() to the exit, and the CPU seconds of the wait."""
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
                waiter.kill()  # a loop would go on for ever
                raise
            late = time.perf_counter() - start
            waiter.returncode = os.waitstatus_to_exitcode(status)
    if waiter.returncode:
        raise SystemExit(f"   {name} ended with {waiter.returncode}")
    return 1000 * late, usage.ru_utime + usage.ru_stime


def without_the_exit():
    """Milliseconds from the call of listen() until what `portwatch wait` waits for is known to it."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        socket_scope = Scope(netns=Filter((os.stat("/proc/self/ns/net").st_ino,)))
        query = PortQuery(Port(server.getsockname()[1], ("tcp",)), socket_scope)
        with watch_port(query, "auto", Options(failures=False)) as watcher, ThreadPoolExecutor() as pool:
            waiting = PortWait(query, watcher)
            known = pool.submit(lambda: (waiting.until_open(LONG), time.perf_counter()))
            time.sleep(HEAD_START)
            start = time.perf_counter()
            server.listen()
            is_open, end = known.result()
    if not is_open:
        raise SystemExit(f"   nobody was seen to listen within {LONG} s")
    return 1000 * (end - start)


def figures(late):
    """The percentiles as they are shown."""
    return " · ".join(f"p{p} {percentile(late, p):,.1f} ms" for p in (50, 90, 99))


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    begin("How late waiters are: from listen() to the moment their parent knows that they have ended")
    late = [without_the_exit() for _ in range(FEWER_RUNS)]
    show("portwatch wait, until it exits", f"{figures(late)}; the rest is the end of the process")
    for name, _ in waiters(0):
        late = [of_one(name, HEAD_START + random.random())[0] for _ in range(RUNS.get(name, FEWER_RUNS))]
        if name in RUNS:
            judge(f"{name}, p50", percentile(late, 50), "ms", most=3)
        show(name, f"{figures(late)}; CPU in a wait of {LONG} s: {of_one(name, LONG)[1]:.2f} s")


if __name__ == "__main__":
    main()
