"""Attaches the bcc engine's programs to kprobes or, if that fails, to the stable hooks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from portwatch.engines import perf
from portwatch.engines.bcc import hooks, syscalls
from portwatch.engines.bcc.compiler import quiet
from portwatch.engines.bcc.programs import Programs
from portwatch.engines.common_hooks import (
    LIMITS_WITHOUT_FAILURES,
    STABLE_LIMITS,
    STABLE_NAME,
    SYSCALL_TRACEPOINTS,
)
from portwatch.engines.limits import Limit
from portwatch.engines.permissions import ASK_DOCTOR, ROOT_CGROUP_IS_TAKEN
from portwatch.errors import EngineUnavailable, NotPermitted
from portwatch.linux import mounts

MPTCP = Path("/proc/sys/net/mptcp")


@dataclass(frozen=True, slots=True)
class Attachment:
    """The set of hooks that is attached, and its limits."""

    hooks: str
    limits: tuple[Limit, ...]
    why: str | None = None
    """The reason why some or all kprobes are not attached."""


def attach_hooks(programs: Programs, *, failures: bool) -> Attachment:
    """Attach the kprobes or, if that fails, the stable hooks.

    Raise EngineUnavailable if neither set can be attached.
    """
    try:
        return _attach_kprobes(programs, failures)
    except EngineUnavailable as error:
        return _attach_stable(programs, failures, why=f"{hooks.KPROBES_NAME}: {error}")


def _attach_kprobes(programs: Programs, failures: bool) -> Attachment:
    limits: tuple[Limit, ...] = hooks.KPROBES_LIMITS
    kprobes = hooks.KPROBES
    if failures:
        kprobes += hooks.FAILURE_KPROBES + (hooks.MPTCP_KPROBES if MPTCP.exists() else ())
    else:
        limits += LIMITS_WITHOUT_FAILURES
    refusals = []
    for kprobe in kprobes:
        refusal = _refusal_of(programs, kprobe)
        if refusal and not kprobe.limits_without:
            _detach_kprobes(programs)
            raise EngineUnavailable(f"cannot attach to {kprobe.function} ({refusal})")
        if refusal:
            refusals.append(f"{kprobe.function} ({refusal})")
            limits += kprobe.limits_without
    why = f"cannot attach to {', '.join(refusals)}" if refusals else None
    return Attachment(hooks.KPROBES_NAME, limits, why)


def _refusal_of(programs: Programs, kprobe: hooks.Kprobe) -> str | None:
    """Attach all programs of a kprobe, or none. If that fails, return the error of bcc or of the kernel."""
    function = kprobe.function.encode()
    output: list[str] = []
    try:
        with quiet(output):
            programs.bpf.attach_kprobe(event=function, fn_name=kprobe.entry.encode())
            if kprobe.exit:
                try:
                    programs.bpf.attach_kretprobe(event=function, fn_name=kprobe.exit.encode())
                except Exception:
                    programs.bpf.detach_kprobe(function)
                    raise
    except Exception as error:  # bcc raises nothing more precise
        return output[0] if output else str(error)
    return None


def _detach_kprobes(programs: Programs) -> None:
    with quiet([]):
        for event in list(programs.bpf.kprobe_fds):
            programs.bpf.detach_kprobe_event(event)


def _attach_stable(programs: Programs, failures: bool, why: str) -> Attachment:
    root = programs.keep(mounts.open_cgroup_root())
    try:
        for name, tracepoint in hooks.RAW_TRACEPOINTS.items():
            program = programs.load(name, syscalls.RAW_TRACEPOINT)
            programs.keep(syscalls.attach_raw_tracepoint(program, tracepoint))
        for hook in hooks.CGROUP:
            program = programs.load(hook.program, hook.kind, hook.attach_type)
            programs.keep(syscalls.attach_cgroup(program, root, hook.attach_type))
    except PermissionError as error:
        raise NotPermitted(
            f"the kernel does not allow the BPF programs ({error.strerror}): lockdown or a security module "
            f"forbids them, or {ROOT_CGROUP_IS_TAKEN}; {ASK_DOCTOR}"
        ) from error
    sees_failures = failures and _attach_tracepoints(programs)
    return Attachment(
        STABLE_NAME, STABLE_LIMITS if sees_failures else STABLE_LIMITS + LIMITS_WITHOUT_FAILURES, why
    )


def _attach_tracepoints(programs: Programs) -> bool:
    """Attach the programs that see failures. Return False if their tracepoints cannot be opened."""
    events = perf.open_tracepoints(SYSCALL_TRACEPOINTS)
    for event in events.values():
        programs.keep(event)
    for name, event in events.items():
        perf.attach(event, programs.load(name, syscalls.TRACEPOINT))
    return bool(events)
