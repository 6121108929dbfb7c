"""A watched process tree that forks thousands of times a second: overhead, number of members, and memory."""

import os
import statistics
import threading
import time

from common import begin, forked, judge, median_with_interval, megabytes, show, workload

from portwatch import PortWatcher

FORKS = 50_000
PAIRS = 30
FORKS_IN_A_PAIR = 1_000


def members(watcher):
    """Return the number of processes in the watched trees."""
    return sum(1 for _ in watcher.choice.engine._membership._entries.pids())


def grow(work, watcher):
    watcher.add_pid(work.pid)
    before, nanoseconds = megabytes(os.getpid()), []
    forking = threading.Thread(target=lambda: nanoseconds.append(work.nanoseconds("fork_exit", FORKS)))
    forking.start()
    largest = 0
    while forking.is_alive():
        largest = max(largest, members(watcher))
        time.sleep(0.01)
    judge("forks a second", 1e9 / nanoseconds[0], "", least=5_000)
    show(f"members of the trees during {FORKS:,} forks", f"{largest} at most, {members(watcher)} afterwards")
    show("RSS before and after", f"{before:.1f} and {megabytes(os.getpid()):.1f} MB")
    show("records lost", f"{watcher.counts.lost}")
    watcher.remove_pid(work.pid)


def cost(work, watcher):
    ratios, plain = [], []
    for _ in range(PAIRS):
        without = work.nanoseconds("fork_exit", FORKS_IN_A_PAIR)
        watcher.add_pid(work.pid)
        within = work.nanoseconds("fork_exit", FORKS_IN_A_PAIR)
        watcher.remove_pid(work.pid)
        plain.append(without / 1000)
        ratios.append(100 * (within / without - 1))
    middle, low, high = median_with_interval(ratios)
    show("fork and exit outside the tree", f"{statistics.median(plain):.0f} µs")
    show("overhead of fork and exit inside the tree", f"{middle:+.1f} % ({low:+.1f} to {high:+.1f})")


def main():
    begin("A watched tree that forks without pause")
    # A second tree is always watched, so that the programs stay attached.
    with (
        forked(lambda: time.sleep(3600)) as other,
        workload() as work,
        PortWatcher(pid=other, engine="core") as watcher,
    ):
        grow(work, watcher)
        cost(work, watcher)


if __name__ == "__main__":
    main()
