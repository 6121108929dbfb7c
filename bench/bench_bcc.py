"""Start-up time and memory of the bcc engine, without kernel headers."""

import json
import socket
import time
from pathlib import Path

from common import COMMAND, begin, judge, percentile, running, show

RUNS = 15
TAIL = (COMMAND, "tail", "--json", "--engine", "bcc")


def measure_start(port):
    """Start `tail` and wait until it prints the open `port`. Return the seconds, RSS and peak RSS in MiB."""
    start = time.perf_counter()
    with running(*TAIL) as process:
        next(line for line in process.stdout if json.loads(line)["port"] == port)
        taken = time.perf_counter() - start
        time.sleep(0.5)
        status = Path(f"/proc/{process.pid}/status").read_text().split()
        return taken, *(int(status[status.index(name) + 1]) / 1024 for name in ("VmRSS:", "VmHWM:"))


def main():
    begin("The bcc engine, which compiles its programs at start, without kernel headers")
    with socket.create_server(("127.0.0.1", 0)) as server:
        runs = [measure_start(server.getsockname()[1]) for _ in range(RUNS)]
    times, resident, peak = zip(*runs, strict=True)
    judge("portwatch --engine bcc tail, p50", percentile(times, 50), "s", most=1.5)
    judge("RSS, maximum of all runs", max(resident), "MB", most=160)
    show("start", " · ".join(f"p{p} {percentile(times, p):.2f} s" for p in (50, 90, 100)))
    show("peak RSS, while bcc compiles", f"{max(peak):.0f} MB")


if __name__ == "__main__":
    main()
