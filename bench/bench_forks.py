"""A tree that forks thousands of times a second: what a fork costs in it, and that nothing grows."""

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
    return sum(1 for _ in watcher.choice.engine._membership._kept.pids())


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
    show(
        f"members of the trees in the course of {FORKS:,} forks", f"{largest} at most, {members(watcher)} after"
    )
    show("our memory before and after", f"{before:.1f} and {megabytes(os.getpid()):.1f} MB")
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
    show("a fork and its end, of a process outside", f"{statistics.median(plain):.0f} µs")
    show("the same, of a process of the tree", f"{middle:+.1f} % ({low:+.1f} to {high:+.1f})")


def main():
    begin("A tree that forks without end")
    # Another tree is watched all the time, so that the programs are attached all the time.
    with (
        forked(lambda: time.sleep(3600)) as other,
        workload() as work,
        PortWatcher(pid=other, engine="core") as watcher,
    ):
        grow(work, watcher)
        cost(work, watcher)


main()
