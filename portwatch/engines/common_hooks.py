"""The hooks that the engines core and bcc have in common, and the limits of these hooks."""

from __future__ import annotations

from portwatch.engines import limits

STABLE_NAME = "stable"
"""The name of the set of hooks that uses only stable kernel interfaces."""
STABLE_LIMITS = (
    limits.UDP_CONNECT,
    limits.UDP_AUTOBIND,
    limits.IO_URING_FAILURES,
    limits.COMPAT_FAILURES,
)
LIMITS_WITHOUT_FAILURES = (limits.FAILURES, limits.BACKLOG_CHANGE)
"""Additional limits if failures are not requested or cannot be seen.

BACKLOG_CHANGE is among them, because the programs that see failures also see backlog changes."""
SYSCALL_TRACEPOINTS = {
    "sys_enter_bind": "syscalls/sys_enter_bind",
    "sys_exit_bind": "syscalls/sys_exit_bind",
    "sys_enter_listen": "syscalls/sys_enter_listen",
    "sys_exit_listen": "syscalls/sys_exit_listen",
}
"""The programs that see failures, and their tracepoints.

Tracepoints for system calls slow down every system call of every thread (measured in bench/)."""

FORKS = {"process_exit": "sched_process_exit", "process_fork": "sched_process_fork"}
"""The programs that track process trees, and their tracepoints.

They are attached when the first tree is watched."""

ITERATOR = "iter_sockets"
"""The name of the BPF iterator program, which visits all open files to find the sockets of a snapshot."""
