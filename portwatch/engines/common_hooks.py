"""The hooks that core and bcc have in common, and what these hooks cannot see."""

from __future__ import annotations

from portwatch.engines import limits

STABLE_NAME = "stable"
"""The name of the set of hooks that consists of stable kernel interfaces only."""
STABLE_LIMITS = (
    limits.UDP_CONNECT,
    limits.UDP_AUTOBIND,
    limits.IO_URING_FAILURES,
    limits.COMPAT_FAILURES,
)
LIMITS_WITHOUT_FAILURES = (limits.FAILURES, limits.BACKLOG_CHANGE)
"""More limits when failures are not requested or cannot be seen. The same programs see backlog changes."""
SYSCALL_TRACEPOINTS = {
    "sys_enter_bind": "syscalls/sys_enter_bind",
    "sys_exit_bind": "syscalls/sys_exit_bind",
    "sys_enter_listen": "syscalls/sys_enter_listen",
    "sys_exit_listen": "syscalls/sys_exit_listen",
}
"""Programs that see failures, and their tracepoints. These slow down every syscall of every thread (bench/)."""

FORKS = {"process_exit": "sched_process_exit", "process_fork": "sched_process_fork"}
"""Programs that track process trees, and their tracepoints. Attached when the first tree is watched."""

ITERATOR = "iter_sockets"
"""The program of the iterator over all open files, which takes snapshots."""
