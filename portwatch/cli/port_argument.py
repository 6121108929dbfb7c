"""What the commands about one port share: how it is named, what narrows it, and the question that makes."""

from __future__ import annotations

from typing import Any

import click

from portwatch.cli.options import (
    F,
    add_options,
    engine_option,
    ephemeral_option,
    pids_of,
    scope_of,
    scope_options,
)
from portwatch.filters.parsing import PROTOCOLS
from portwatch.linux import netns
from portwatch.port.lookup import Port, PortQuery

_SAID_BY_PORT = ("port", "not_port", "proto", "not_proto")


class PortCommand(click.Command):
    """A command about one PORT: the options that would say the same are not its."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its arguments and options."""
        return [one for one in super().get_params(ctx) if one.name not in _SAID_BY_PORT]


class _PortType(click.ParamType):
    name = "PORT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, Port):
            return value
        proto, slash, number = value.rpartition("/")
        if slash and proto not in PROTOCOLS:
            self.fail(f"{proto!r} is none of {', '.join(PROTOCOLS)}: try tcp/8080", param, ctx)
        if not (number.isascii() and number.isdecimal() and 0 < int(number) <= 65_535):
            self.fail(f"{number!r} is no port: try 8080, tcp/8080 or udp/53", param, ctx)
        return Port(int(number), (proto,) if slash else PROTOCOLS)


def port_options(function: F) -> F:
    """PORT, and what else says which of its sockets are meant, and by which engine."""
    argument = click.argument("target", type=_PortType(), metavar="PORT")
    return add_options(function, argument, scope_options(), engine_option, ephemeral_option())


def query_of(port: Port, scope: dict[str, Any], *, here: bool) -> PortQuery:
    """What is asked; `here` keeps it to our own network namespace where --netns says nothing."""
    if here and not scope["netns"]:
        scope["netns"] = ((netns.own().inode,),)
    return PortQuery(port, scope_of(scope), pids_of(scope))
