"""What this machine allows, and which engine that makes possible."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from portwatch import kernel, mounts, procfs, rights
from portwatch.engines import ENGINES, Options, choose
from portwatch.engines.bcc import headers
from portwatch.engines.bcc.compiler import find_bcc
from portwatch.engines.capabilities import Limit
from portwatch.engines.core.engine import OBJECT
from portwatch.engines.core.libbpf import Libbpf
from portwatch.errors import EngineUnavailable
from portwatch.kernel import VMLINUX
from portwatch.snapshot import diag, netns

State = Literal["ok", "limited", "not ok"]


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that an engine may need, as it is here."""

    name: str
    state: State
    text: str
    help: str | None = None
    """What to do about it."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of really attaching an engine."""

    engine: str
    works: bool
    refusal: str | None = None
    hooks: str | None = None
    why: str | None = None
    """Why on these hooks and not on better ones."""
    limits: tuple[Limit, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """All that doctor knows."""

    facts: tuple[Fact, ...]
    capabilities: dict[str, bool]
    trials: tuple[Trial, ...]
    asked: str = "auto"
    """The engine that it is about, if it is about one."""

    @property
    def taken(self) -> Trial | None:
        """The engine that is taken: the first that works."""
        return next((trial for trial in self.trials if trial.works), None)

    @property
    def verdict(self) -> str:
        """Which engine is taken."""
        if not self.taken:
            return "no engine works here" if self.asked == "auto" else f"{self.asked} does not work here"
        return f"auto takes {self.taken.engine}" if self.asked == "auto" else f"{self.asked} is taken"

    @property
    def why(self) -> str:
        """Why that one."""
        refused = [f"{trial.engine} cannot run here ({trial.refusal})" for trial in self._before_taken()]
        if refused:
            return "; ".join(refused)
        return f"it is {'the first choice' if self.asked == 'auto' else 'what was asked for'}, and works"

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "engine": self.taken.engine if self.taken else None,
            "why": self.why,
            "facts": [asdict(fact) for fact in self.facts],
            "capabilities": self.capabilities,
            "engines": [
                {
                    "engine": trial.engine,
                    "works": trial.works,
                    "refusal": trial.refusal,
                    "hooks": trial.hooks,
                    "why": trial.why,
                    "limits": [{"name": limit.name, "text": limit.text} for limit in trial.limits],
                }
                for trial in self.trials
            ],
        }

    def _before_taken(self) -> tuple[Trial, ...]:
        return self.trials[: self.trials.index(self.taken)] if self.taken else self.trials


def examine(engine: str = "auto") -> Report:
    """Looks at everything, and tries every engine, or the one that is asked for."""
    return Report(
        tuple(_guarded(name, check) for name, check in _CHECKS.items()),
        _capabilities(),
        tuple(_try(name) for name in (ENGINES if engine == "auto" else (engine,))),
        engine,
    )


def _guarded(name: str, check: Callable[[], tuple[State, str, str | None]]) -> Fact:
    try:
        return Fact(name, *check())
    except (OSError, EngineUnavailable) as error:
        return Fact(name, "not ok", str(error))


def _try(name: str) -> Trial:
    try:
        engine = choose(name, Options(), prove=lambda candidate: candidate.attach()).engine
    except EngineUnavailable as error:
        return Trial(name, False, str(error))
    able = engine.capabilities
    engine.detach()
    return Trial(name, True, None, able.hooks, able.why, able.limits)


def _capabilities() -> dict[str, bool]:
    try:
        held = rights.effective()
    except OSError:
        return {}  # said by the fact of that name
    return {right.name: rights.has(right, held) for right in rights.ALL}


def _kernel() -> tuple[State, str, str | None]:
    system = os.uname()
    return "ok", f"{system.release} on {system.machine}", None


def _btf() -> tuple[State, str, str | None]:
    if VMLINUX.exists():
        return "ok", f"{VMLINUX} describes the kernel's fields", None
    return (
        "limited",
        f"{VMLINUX} is missing: core cannot find the kernel's fields, bcc needs the kernel's headers for it",
        f"apt-get install python3-bpfcc linux-headers-{os.uname().release}; or boot a kernel with "
        "CONFIG_DEBUG_INFO_BTF (5.8 or later; every current distribution's has it)",
    )


def _lockdown() -> tuple[State, str, str | None]:
    mode = kernel.lockdown()
    if mode is None:
        return (
            "limited",
            "not known, as securityfs is not ours to read: at confidentiality, programs could not read the "
            "kernel's memory",
            "CAP_SYS_ADMIN, or in a container -v /sys/kernel/security:/sys/kernel/security:ro",
        )
    if mode == kernel.CONFIDENTIALITY:
        return "not ok", f"{mode}: programs may not read the kernel's memory", kernel.WITHOUT_LOCKDOWN
    return "ok", mode, None


def _rights() -> tuple[State, str, str | None]:
    held = rights.effective()
    missing = [right for right in rights.ALL if not rights.has(right, held)]
    if not missing:
        return "ok", f"{', '.join(right.name for right in rights.ALL)} are held", None
    text = "; ".join(f"{right.name} is missing ({right.purpose})" for right in missing)
    if rights.missing_for_programs():
        return "not ok", text, "run it as root (sudo portwatch), or give these capabilities to its service"
    only_old_kernels_care = missing == [rights.SYS_RESOURCE] and kernel.RELEASE >= rights.COUNTS_BPF_BY_CGROUP
    return "ok" if only_old_kernels_care else "limited", text, None


def _memlock() -> tuple[State, str, str | None]:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    amount = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    if kernel.RELEASE >= rights.COUNTS_BPF_BY_CGROUP:
        return "ok", f"{amount}, which this kernel does not apply to BPF", None
    if rights.memlock() is None:
        return "ok", f"{amount}, and can be raised", None
    return "limited", f"{amount}, and cannot be raised", rights.RAISE_MEMLOCK


def _libbpf() -> tuple[State, str, str | None]:
    return "ok", f"version {Libbpf().version}", None


def _object() -> tuple[State, str, str | None]:
    if OBJECT.exists():
        return "ok", f"{OBJECT}, {OBJECT.stat().st_size >> 10} KiB", None
    return "not ok", f"{OBJECT} is missing", "install portwatch again, where a C compiler for BPF is to be had"


def _cgroup() -> tuple[State, str, str | None]:
    os.close(mounts.open_cgroup_root())
    return "ok", "the true root of cgroup v2 can be opened", None


def _tracefs() -> tuple[State, str, str | None]:
    try:
        os.close(mounts.open_file_system("tracefs"))
    except OSError as error:
        return (
            "limited",
            f"not to be had ({error.strerror}): binds and listens that fail are not reported",
            "mount -t tracefs tracefs /sys/kernel/tracing (as root)",
        )
    point = next((mount.point for mount in mounts.mounts() if mount.kind == "tracefs"), None)
    return "ok", f"mounted at {point}" if point else "mounted nowhere, and can be had without", None


def _namespaces() -> tuple[State, str, str | None]:
    here, shown = netns.own().inode, netns.all_namespaces()
    barred = [namespace for namespace in shown if namespace.inode != here and not _can_enter(namespace)]
    if barred or not rights.has(rights.SYS_ADMIN, rights.effective()):
        return (
            "limited",
            "none but our own can be entered"
            if len(barred) == len(shown) - 1
            else f"{len(barred)} cannot be entered",
            "CAP_SYS_ADMIN, with which poll sees what is open in the others, too",
        )
    return "ok", f"{len(shown)} network namespaces are shown, and can be entered", None


def _can_enter(namespace: netns.Namespace) -> bool:
    try:
        with netns.entered(namespace):
            return True
    except FileNotFoundError:
        return True  # it has ended since it was listed, and bars nobody
    except OSError:
        return False


def _proc() -> tuple[State, str, str | None]:
    if not procfs.has_kernels_pids():
        return (
            "limited",
            f"{procfs.root()} is of a pid namespace of its own, and has other pids than BPF tells: core and "
            "bcc tell nothing of a process that only /proc knows (as its container, where cgroups are of v1)",
            "docker run --pid=host; or -v /proc:/host/proc:ro -e HOST_PROC=/host/proc (or --procfs /host/proc)",
        )
    hidden = _hidepid()
    if not hidden:
        return "ok", f"every process is shown ({len(procfs.pids())})", None
    text = f"mounted with hidepid={hidden}"
    if rights.has(rights.SYS_PTRACE, rights.effective()):
        return "ok", f"{text}, from which CAP_SYS_PTRACE exempts us", None
    return (
        "limited",
        f"{text}: other users' processes, and so the owners of their ports, are not shown",
        "CAP_SYS_PTRACE, or the group that the mount's option gid= names",
    )


def _hidepid() -> str | None:
    seen = ""
    for mount in mounts.mounts():
        if mount.point == procfs.root():
            seen = mount.options  # of the last one that was mounted there
    option = re.search(r"(?:^|,)hidepid=(\w+)", seen)
    return None if not option or option[1] in ("0", "off") else option[1]


def _bcc() -> tuple[State, str, str | None]:
    try:
        version = getattr(find_bcc(), "__version__", None)
    except EngineUnavailable as error:
        needed = not VMLINUX.exists()
        return "limited" if needed else "ok", f"{error}{'' if needed else '; core does without'}", None
    if VMLINUX.exists():
        return "ok", f"version {version}, which needs no kernel headers here", None
    return "ok", f"version {version}, with the headers in {headers.of_running_kernel().build}", None


def _sock_diag() -> tuple[State, str, str | None]:
    try:
        found = diag.open_sockets(netns.own())
    except OSError as error:
        return "not ok", f"does not answer ({error.strerror})", "modprobe inet_diag tcp_diag udp_diag (as root)"
    return "ok", f"answers ({len(found)} open sockets in our own network namespace)", None


_CHECKS: dict[str, Callable[[], tuple[State, str, str | None]]] = {
    "kernel": _kernel,
    "btf": _btf,
    "lockdown": _lockdown,
    "capabilities": _rights,
    "memlock": _memlock,
    "libbpf": _libbpf,
    "bpf object": _object,
    "cgroup v2": _cgroup,
    "tracefs": _tracefs,
    "namespaces": _namespaces,
    "proc": _proc,
    "bcc": _bcc,
    "sock_diag": _sock_diag,
}
