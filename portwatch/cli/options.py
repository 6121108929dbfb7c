"""The options that several commands share."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from portwatch.engines.choice import ENGINES, Choice
from portwatch.engines.limits import FAILURES
from portwatch.errors import NotPermitted, PortwatchError
from portwatch.filters.filter import Filter
from portwatch.filters.parsing import EXPOSURES, PROTOCOLS, one_of, port_range
from portwatch.filters.scope import Scope
from portwatch.linux import cgroups, containers, netns, procfs

F = TypeVar("F", bound=Callable[..., Any])

_NS_GET_NSTYPE = 0xB703


class Seconds(click.FloatRange):
    """A number of seconds that can be waited for: not "nan", which passes every comparison."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number."""
        if str(value).strip().lower().lstrip("+-") == "nan":
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return super().convert(value, param, ctx)


class _List(click.ParamType):
    """Values between commas."""

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
    if text == "all":
        return None
    if text != "self" and "/" not in text:
        inode = netns.named(text)
        if inode is None:
            raise ValueError(f"no network namespace is called {text!r} (ip netns lists them; a path will do)")
        return inode
    try:
        fd = os.open(
            "/proc/self/ns/net" if text == "self" else text, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        )
        try:
            inode, kind = os.fstat(fd).st_ino, fcntl.ioctl(fd, _NS_GET_NSTYPE)
        finally:
            os.close(fd)
    except PermissionError:
        raise NotPermitted(f"{text!r} is not ours to open as a network namespace: run it as root") from None
    except OSError as error:
        reason = "it is no namespace" if error.errno == errno.ENOTTY else error.strerror
        raise ValueError(f"{text!r} cannot be opened as a network namespace: {reason}") from None
    if kind != netns.CLONE_NEWNET:
        raise ValueError(
            f"{text!r} is not a network namespace, but one of another kind (try /proc/PID/ns/net, or a name)"
        )
    return inode


def _but_not_all(text: str) -> int | None:
    if text == "all":
        raise ValueError("without all network namespaces, nothing is left to show")
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
    """An option that narrows what is shown, and its `--not-` form."""

    kind: click.ParamType
    help: str
    not_kind: click.ParamType | None = None
    """The type of the `--not-` form, where it differs."""

    def declare(self, name: str, *, hidden: bool) -> Iterator[Callable[[F], F]]:
        """Yield both options."""
        text = f"{self.help} Also --not-{name}."
        yield click.option(f"--{name}", type=self.kind, multiple=True, help=text, hidden=hidden)
        yield click.option(f"--not-{name}", type=self.not_kind or self.kind, multiple=True, hidden=True)


_SCOPE_OPTIONS = {
    "port": _ScopeOption(PORTS, "Ports and ranges: 80,8000-8999."),
    "proto": _ScopeOption(PROTOS, "tcp, udp."),
    "exposure": _ScopeOption(EXPOSED, "loopback, private, public, all."),
    "process": _ScopeOption(GLOBS, "Names of processes: 'nginx*'."),
    "cgroup": _ScopeOption(CGROUPS, "/system.slice and below."),
    "container": _ScopeOption(CONTAINERS, "Beginning of a container's id."),
    "netns": _ScopeOption(NETNS, "self, all, a path or a name.", _List("NETNS", _but_not_all)),
}
_PID_OPTION = _ScopeOption(click.INT, "A process and its descendants.")


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
    is_eager=True,  # the other options' values are looked up there
    expose_value=False,
    callback=_use_procfs,
    hidden=True,  # doctor says where it is needed, and the screen is full
)


engine_option = click.option(
    "--engine",
    type=click.Choice(["auto", *ENGINES]),
    default="auto",
    metavar="ENGINE",
    help=f"{', '.join(ENGINES)}.  [auto: the best that works]",
)


def ephemeral_option(*, hidden: bool = False) -> Callable[[F], F]:
    """Return --ephemeral."""
    text = "Also UDP ports chosen by the kernel."
    return click.option("--ephemeral", is_flag=True, help=text, hidden=hidden)


def interval_option(*, hidden: bool = False) -> Callable[[F], F]:
    """Return --interval, for commands that follow what happens: a poll engine does so by polling."""
    return click.option(
        "--interval",
        type=Seconds(min=0.01, max=86_400),
        default=1.0,
        metavar="SECONDS",
        help="Between two polls.  [1]",
        hidden=hidden,
    )


def scope_options(*, hidden: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Return a decorator that adds the options of a scope and `--pid`; `hidden` ones are not in the help."""
    declared = [
        option
        for name, one in {"pid": _PID_OPTION, **_SCOPE_OPTIONS}.items()
        for option in one.declare(name, hidden=name in hidden)
    ]
    return lambda function: add_options(function, *declared, procfs_option)


def add_options(function: F, *options: Callable[[F], F]) -> F:
    """Add options to a command in this order."""
    for option in reversed(options):
        function = option(function)
    return function


def scope_of(options: dict[str, Any]) -> Scope:
    """Remove the options of a scope from a command's, and return the scope."""

    def flat(name: str) -> tuple[Any, ...]:
        values = tuple(value for given in options.pop(name, ()) for value in given)
        return () if None in values else values  # None is `all`, whatever else is given

    return Scope(**{name: Filter(flat(name), flat(f"not_{name}")) for name in _SCOPE_OPTIONS})


def pids_of(options: dict[str, Any]) -> Filter[int]:
    """Remove `--pid` and `--not-pid` from a command's options, and return them."""
    return Filter(options.pop("pid"), options.pop("not_pid"))


def _to_stderr(words: str) -> None:
    click.echo(f"portwatch: {words}", err=True)


def say_fallback(choice: Choice, say: Callable[[str], object] = _to_stderr) -> None:
    """One line when a lesser engine had to do, with what would help."""
    if choice.refusals:
        refused = "; ".join(f"{name} cannot run here: {error}" for name, error in choice.refusals.items())
        say(f"{refused}. Using {choice.engine.name} instead.")


def say_unseen_failures(choice: Choice) -> None:
    """One line where an engine that could see failures cannot here; whoever polls has chosen, or was told."""
    if choice.engine.name != "poll" and choice.engine.info.has_limit(FAILURES.name):
        click.echo(
            "portwatch: binds and listens that fail are not seen here, for want of tracefs or of perf events "
            "(portwatch doctor tells more, --no-failures does without)",
            err=True,
        )
