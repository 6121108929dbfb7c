"""How soon the bcc engine sees, without kernel headers, and what it holds of memory."""

import json
import socket
import time
from pathlib import Path

from common import COMMAND, begin, judge, percentile, running, show

RUNS = 15
TAIL = (COMMAND, "tail", "--json", "--engine", "bcc")


def until_ready(port):
    """Seconds from the start to the first line of what was open, and the memory then held."""
    start = time.perf_counter()
    with running(*TAIL) as process:
        next(line for line in process.stdout if json.loads(line)["port"] == port)
        taken = time.perf_counter() - start
        time.sleep(0.5)
        status = Path(f"/proc/{process.pid}/status").read_text().split()
        return taken, *(int(status[status.index(name) + 1]) / 1024 for name in ("VmRSS:", "VmHWM:"))


def main():
    begin("The bcc engine: compiled at the start, without kernel headers")
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = [until_ready(server.getsockname()[1]) for _ in range(RUNS)]
    times, resident, most = zip(*found, strict=True)
    judge("portwatch --engine bcc tail, p50", percentile(times, 50), "s", most=1.5)
    judge("RSS, the most of all runs", max(resident), "MB", most=160)
    show("the start", " · ".join(f"p{p} {percentile(times, p):.2f} s" for p in (50, 90, 100)))
    show("most resident while it compiles", f"{max(most):.0f} MB")


if __name__ == "__main__":
    main()
