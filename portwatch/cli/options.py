"""The options that several commands share."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from portwatch import cgroups, identity, procfs
from portwatch.engines import ENGINES, Choice
from portwatch.engines.capabilities import FAILURES
from portwatch.errors import NotPermitted, PortwatchError
from portwatch.only import Only
from portwatch.parsing import EXPOSURES, PROTOCOLS, one_of, port_range
from portwatch.scope import Scope
from portwatch.snapshot import netns

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
CONTAINERS = _List("ID", identity.find_container)
NETNS = _List("NETNS", _namespace)

_SCOPE = {
    "port": (PORTS, "Ports and ranges: 80,8000-8999."),
    "proto": (PROTOS, "tcp, udp."),
    "exposure": (EXPOSED, "loopback, private, public, all."),
    "process": (GLOBS, "Names of processes: 'nginx*'."),
    "cgroup": (CGROUPS, "/system.slice and what is below."),
    "container": (CONTAINERS, "How a container's id begins."),
    "netns": (NETNS, "self, all, a path or a name."),
}
_NOT = {name: kind for name, (kind, _) in _SCOPE.items()} | {"netns": _List("NETNS", _but_not_all)}


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


def engine_options(function: F) -> F:
    """--engine and what engines are asked for."""
    for option in (
        click.option(
            "--interval",
            type=Seconds(min=0.01, max=86_400),
            default=1.0,
            metavar="SECONDS",
            help="Between two polls.  [1]",
        ),
        click.option("--ephemeral", is_flag=True, help="UDP ports that the kernel chose, too."),
        engine_option,
    ):
        function = option(function)
    return function


def hidden(*names: str) -> Callable[[F], F]:
    """Leaves some of the options below it out of a help that must fit a screen."""

    def hide(function: F) -> F:
        for option in getattr(function, "__click_params__", ()):
            if option.name in names:
                option.hidden = True
        return function

    return hide


def scope_options(function: F) -> F:
    """The options that narrow what is shown; several values of one widen it."""
    for name, (kind, text) in reversed(_SCOPE.items()):
        function = _with_its_reverse(function, name, kind, _NOT[name], text)
    function = _with_its_reverse(function, "pid", int, int, "A process and what descends from it.")
    return procfs_option(function)


def scope_of(options: dict[str, Any]) -> Scope:
    """Takes the scope's options out of a command's."""

    def flat(name: str) -> tuple[Any, ...]:
        values = tuple(value for given in options.pop(name, ()) for value in given)
        return () if None in values else values  # with `all`, whatever stands beside it

    return Scope(**{name: Only(flat(name), flat(f"not_{name}")) for name in _SCOPE})


def pids_of(options: dict[str, Any]) -> Only[int]:
    """Takes the roots of process trees out of a command's options."""
    return Only(options.pop("pid"), options.pop("not_pid"))


def _with_its_reverse(function: F, name: str, kind: Any, kind_of_not: Any, text: str) -> F:
    function = click.option(f"--not-{name}", type=kind_of_not, multiple=True, hidden=True)(function)
    return click.option(f"--{name}", type=kind, multiple=True, help=f"{text} Also --not-{name}.")(function)


def _to_stderr(words: str) -> None:
    click.echo(f"portwatch: {words}", err=True)


def say_fallback(choice: Choice, say: Callable[[str], object] = _to_stderr) -> None:
    """One line when a lesser engine had to do, with what would help."""
    if choice.refusals:
        refused = "; ".join(f"{name} cannot run here: {error}" for name, error in choice.refusals.items())
        say(f"{refused}. Using {choice.engine.name} instead.")


def say_unseen_failures(choice: Choice) -> None:
    """One line where an engine that could see failures cannot here; whoever polls has chosen, or was told."""
    if choice.engine.name != "poll" and choice.engine.capabilities.lacks(FAILURES.name):
        click.echo(
            "portwatch: binds and listens that fail are not seen here, for want of tracefs or of perf events "
            "(portwatch doctor tells more, --no-failures does without)",
            err=True,
        )
