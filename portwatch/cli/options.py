"""The options that several commands share."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from portwatch.addresses import EXPOSURES
from portwatch.cli.sections import ENGINE, FILTERS, ExcludeOption, SectionOption
from portwatch.engines.choice import ENGINES, Choice
from portwatch.engines.limits import FAILURES
from portwatch.errors import NotPermitted, PortwatchError
from portwatch.filters.filter import Filter
from portwatch.filters.parsing import one_of, port_range
from portwatch.filters.scope import Scope
from portwatch.linux import cgroups, containers, netns, procfs
from portwatch.model import PROTOCOLS

F = TypeVar("F", bound=Callable[..., Any])

_NS_GET_NSTYPE = 0xB703


class Seconds(click.FloatRange):
    """A number of seconds. "nan" is rejected, because it would pass every range check."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number of seconds."""
        if str(value).strip().lower().lstrip("+-") == "nan":
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return super().convert(value, param, ctx)


class _List(click.ParamType):
    """Comma-separated values."""

    def __init__(self, name: str, convert: Callable[[str], Any]) -> None:
        self.name = name
        self._convert = convert

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self._convert(part) for part in value.split(","))
        except NotPermitted:
            raise
        except (ValueError, PortwatchError) as error:
            self.fail(str(error), param, ctx)


def _namespace(text: str) -> int | None:
    """Return the inode of a network namespace, or None for `all`."""
    if text == "all":
        return None
    if text != "self" and "/" not in text:
        inode = netns.named(text)
        if inode is None:
            raise ValueError(
                f"there is no network namespace {text!r}: give a name that `ip netns` lists, or a path such as "
                "/proc/PID/ns/net"
            )
        return inode
    return _namespace_at(text, "/proc/self/ns/net" if text == "self" else text)


def _namespace_at(text: str, path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            inode, kind = os.fstat(fd).st_ino, fcntl.ioctl(fd, _NS_GET_NSTYPE)
        finally:
            os.close(fd)
    except PermissionError:
        raise NotPermitted(
            f"no permission to open the network namespace {text!r}: run portwatch as root"
        ) from None
    except OSError as error:
        reason = "it is not a namespace" if error.errno == errno.ENOTTY else error.strerror
        raise ValueError(f"{text!r} cannot be opened as a network namespace: {reason}") from None
    if kind != netns.CLONE_NEWNET:
        raise ValueError(
            f"{text!r} is a namespace, but not a network namespace: give a path such as /proc/PID/ns/net, or a "
            "name that `ip netns` lists"
        )
    return inode


def _excluded_namespace(text: str) -> int | None:
    if text == "all":
        raise ValueError("excluding all network namespaces would leave nothing to show")
    return _namespace(text)


PORTS = _List("PORTS", port_range)
PROTOS = _List("PROTO", one_of(PROTOCOLS))
EXPOSED = _List("EXPOSURE", one_of(EXPOSURES))
GLOBS = _List("GLOB", str)
CGROUPS = _List("PATH", cgroups.find)
CONTAINERS = _List("ID", containers.find_container)
NETNS = _List("NETNS", _namespace)


@dataclass(frozen=True, slots=True)
class _ScopeOption:
    """A filter option and its `--not-` form."""

    type: click.ParamType
    help: str
    not_type: click.ParamType | None = None
    """The type of the `--not-` form. None means `type`."""
    metavar: str | None = None

    def declare(self, name: str) -> Iterator[Callable[[F], F]]:
        """Yield the decorators that add both options to a command."""
        exclude = f"--not-{name}"
        yield click.option(
            f"--{name}",
            type=self.type,
            metavar=self.metavar,
            multiple=True,
            help=self.help,
            cls=SectionOption,
            section=FILTERS,
            exclude=exclude,
        )
        yield click.option(exclude, type=self.not_type or self.type, multiple=True, cls=ExcludeOption)


_SCOPE_OPTIONS = {
    "port": _ScopeOption(PORTS, "Ports and ranges: 80,8000-8999."),
    "proto": _ScopeOption(PROTOS, "Protocols: tcp, udp."),
    "exposure": _ScopeOption(EXPOSED, "loopback, private, public, or all: 0.0.0.0 and ::."),
    "process": _ScopeOption(GLOBS, "Process names: 'nginx*'."),
    "cgroup": _ScopeOption(CGROUPS, "A cgroup and all below: /system.slice."),
    "container": _ScopeOption(CONTAINERS, "A container ID, or the start of one."),
    "netns": _ScopeOption(
        NETNS, "self, all, a path, or an ip netns name.", _List("NETNS", _excluded_namespace)
    ),
}
_PID_OPTION = _ScopeOption(click.INT, "A process and its descendants.", metavar="PID")


def _use_procfs(ctx: click.Context, _param: click.Parameter, path: str | None) -> None:
    if path is not None:
        try:
            procfs.use(path)
        except NotPermitted:
            raise
        except PortwatchError as error:
            raise click.BadParameter(str(error), ctx, param_hint="'--procfs' (or $HOST_PROC)") from None


procfs_option = click.option(
    "--procfs",
    metavar="PATH",
    envvar="HOST_PROC",
    is_eager=True,  # parsed first, because other options look up their values in this procfs
    expose_value=False,
    callback=_use_procfs,
    help="The host's /proc, if portwatch runs in a container.",
    cls=SectionOption,
    section=ENGINE,
)


engine_option = click.option(
    "--engine",
    type=click.Choice(["auto", *ENGINES]),
    default="auto",
    metavar="ENGINE",
    help=f"{', '.join(ENGINES)}.  [default: the first that works]",
    cls=SectionOption,
    section=ENGINE,
)
ephemeral_option = click.option(
    "--ephemeral",
    is_flag=True,
    help="Include UDP ports chosen by the kernel.",
    cls=SectionOption,
    section=ENGINE,
)
interval_option = click.option(
    "--interval",
    type=Seconds(min=0.01, max=86_400),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two polls.",
    cls=SectionOption,
    section=ENGINE,
)
no_failures_option = click.option(
    "--no-failures",
    is_flag=True,
    help="Do not trace failed binds and listens.",
    cls=SectionOption,
    section=ENGINE,
)


def scope_options(*, omitted: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Return a decorator that adds the scope options, `--pid` and `--procfs`, except those in `omitted`."""
    options = [
        option
        for name, scope_option in {"pid": _PID_OPTION, **_SCOPE_OPTIONS}.items()
        if name not in omitted
        for option in scope_option.declare(name)
    ]
    return lambda function: add_options(function, *options, procfs_option)


def add_options(function: F, *options: Callable[[F], F]) -> F:
    """Add options to a command. The help shows them in this order."""
    for option in reversed(options):
        function = option(function)
    return function


def pop_scope(options: dict[str, Any]) -> Scope:
    """Remove the scope options from a command's options, and return the scope."""

    def pop(name: str) -> tuple[Any, ...]:
        values = tuple(value for values in options.pop(name, ()) for value in values)
        return () if None in values else values  # None stands for `all`

    return Scope(**{name: Filter(pop(name), pop(f"not_{name}")) for name in _SCOPE_OPTIONS})


def pop_pids(options: dict[str, Any]) -> Filter[int]:
    """Remove `--pid` and `--not-pid` from a command's options, and return them."""
    return Filter(options.pop("pid"), options.pop("not_pid"))


def _to_stderr(message: str) -> None:
    click.echo(f"portwatch: {message}", err=True)


def report_fallback(choice: Choice, report: Callable[[str], object] = _to_stderr) -> None:
    """If an engine preferred to the chosen one cannot run, report which and why."""
    if choice.refusals:
        refusals = "; ".join(f"{name} cannot run here ({error})" for name, error in choice.refusals.items())
        report(f"using the engine {choice.engine.name}: {refusals}")


def report_unseen_failures(choice: Choice) -> None:
    """If the engine cannot see failed binds and listens on this machine, report that.

    Nothing is reported for the poll engine, because it cannot see them on any machine.
    """
    if choice.engine.name != "poll" and choice.engine.info.has_limit(FAILURES.name):
        _to_stderr(
            "failed binds and listens are not reported, because tracefs or perf events are not available "
            "(run portwatch doctor for details, or pass --no-failures)"
        )
