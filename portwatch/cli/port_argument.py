"""The PORT argument of who, wait and kill, and the query built from the arguments of these commands."""

from __future__ import annotations

from typing import Any

import click

from portwatch.cli.options import (
    F,
    add_options,
    engine_option,
    ephemeral_option,
    pop_pids,
    pop_scope,
    scope_options,
)
from portwatch.linux import netns
from portwatch.model import PROTOCOLS
from portwatch.port.lookup import Port, PortQuery


class PortType(click.ParamType):
    """A port: `8080`, `tcp/8080` or `udp/53`. With `needs_proto`, the protocol is required."""

    def __init__(self, *, needs_proto: bool = False) -> None:
        self.name = "PROTO/PORT" if needs_proto else "PORT"
        self._needs_proto = needs_proto

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value as a Port."""
        if isinstance(value, Port):
            return value
        proto, slash, number = value.rpartition("/")
        if slash and proto not in PROTOCOLS:
            self.fail(f"{proto!r} is not a protocol: try tcp/8080 or udp/53", param, ctx)
        if not _is_port_number(number):
            self.fail(f"{number!r} is not a port: try 8080, tcp/8080 or udp/53", param, ctx)
        if self._needs_proto and not slash:
            self.fail(f"{value!r} has no protocol: try tcp/{value} or udp/{value}", param, ctx)
        return Port(int(number), (proto,) if slash else PROTOCOLS)


def _is_port_number(text: str) -> bool:
    # The length is checked first, because int() raises ValueError for thousands of digits.
    return text.isascii() and text.isdecimal() and len(text) <= 5 and 0 < int(text) <= 65_535


def port_options(function: F) -> F:
    """Add the PORT argument, the scope options except --port and --proto, --engine and --ephemeral."""
    argument = click.argument("port", type=PortType(), metavar="PORT")
    scope = scope_options(omitted=("port", "proto"))
    return add_options(function, argument, scope, engine_option, ephemeral_option)


def pop_query(port: Port, options: dict[str, Any], *, own_netns: bool) -> PortQuery:
    """Remove the scope options from a command's options, and return the query.

    With `own_netns`, only our own network namespace is searched unless --netns is given.
    """
    if own_netns and not options["netns"]:
        options["netns"] = ((netns.own().inode,),)
    return PortQuery(port, pop_scope(options), pop_pids(options))
