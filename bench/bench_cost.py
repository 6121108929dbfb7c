"""Overhead of tracing on connections, UDP sockets and unrelated syscalls."""

import math
import time
from contextlib import contextmanager

from common import begin, judge, median_with_interval, show, workload

from portwatch.engines.core.engine import CoreEngine

ROUNDS = 60
REPEATS = 5
PAUSE = 0.02
"""Seconds between attaching and measuring."""
WORK = {"tcp_close": 150, "tcp_connection": 100, "udp_connected": 500, "getppid": 10_000}
"""The operations of workload.c to measure, and how often each run repeats them."""
TITLES = {
    "tcp_close": "closing both ends of a TCP connection",
    "tcp_connection": "TCP: connect, accept, close both ends",
    "udp_connected": "UDP: socket, connect, close",
    "getppid": "getppid, as an example of an unrelated syscall",
}
BARS = {"tcp_close": 3, "udp_connected": 6}
"""The largest acceptable overhead of an operation, in percent."""


@contextmanager
def attached(failures):
    engine = CoreEngine(failures=failures)
    engine.attach()
    try:
        yield
    finally:
        engine.detach()


@contextmanager
def untraced():
    yield


VARIANTS = {
    "without": untraced,
    "--no-failures": lambda: attached(failures=False),
    "default": lambda: attached(failures=True),
}


def block(program, variant):
    """Return the nanoseconds of each operation. This is the minimum of several runs, to exclude interrupts."""
    with VARIANTS[variant]():
        time.sleep(PAUSE)
        return {
            name: min(program.nanoseconds(name, count) for _ in range(REPEATS)) for name, count in WORK.items()
        }


def main():
    begin("Overhead: alternating blocks with and without tracing, median of paired ratios [95 % interval]")
    order = (*VARIANTS, *reversed(VARIANTS))
    with workload() as program:
        block(program, "without")
        rounds = [[(variant, block(program, variant)) for variant in order] for _ in range(ROUNDS)]

    def logarithms(name, variant):
        return [sum(math.log(times[name]) for run, times in blocks if run == variant) / 2 for blocks in rounds]

    for name, title in TITLES.items():
        base = logarithms(name, "without")
        nanoseconds = math.exp(sum(base) / len(base))
        show(title, f"{nanoseconds:,.0f} ns without tracing")
        for variant in list(VARIANTS)[1:]:
            ratios = [
                100 * math.expm1(traced - untraced)
                for traced, untraced in zip(logarithms(name, variant), base, strict=True)
            ]
            middle, low, high = median_with_interval(ratios)
            spread = f"[{low:+.1f} … {high:+.1f}], {nanoseconds * middle / 100:+.0f} ns"
            if name in BARS:
                judge(f"  {variant}: {spread}", middle, "%", most=BARS[name])
            else:
                show(f"  {variant}: {spread}", f"{middle:+.1f} %")
        noise = [
            100 * math.expm1(math.log(blocks[-1][1][name]) - math.log(blocks[0][1][name])) for blocks in rounds
        ]
        middle, low, high = median_with_interval(noise)
        show(f"  untraced against untraced: [{low:+.1f} … {high:+.1f}]", f"{middle:+.1f} %")


if __name__ == "__main__":
    main()
