"""Where the daemon is reached: an address and a port, or a socket file."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass

from portwatch.errors import PortwatchError

BACKLOG = 1024
UNIX = "unix:"
_LONGEST_PATH = 107
"""Bytes, as the kernel has room for."""


@dataclass(frozen=True, slots=True)
class Address:
    """One of them; `path` is a socket file's, else there is a host."""

    host: str = ""
    port: int = 0
    path: str | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return UNIX + self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(text: str) -> Address:
    """`127.0.0.1:9935`, `[::1]:9935` or `unix:/run/portwatch.sock`. Raises ValueError."""
    if text.startswith(UNIX):
        path = text.removeprefix(UNIX)
        if not path.startswith("/"):
            raise ValueError(f"{text!r} names no file by its whole path, such as unix:/run/portwatch.sock")
        if len(os.fsencode(path)) > _LONGEST_PATH:
            raise ValueError(
                f"{text!r} is longer than the {_LONGEST_PATH} bytes that a socket file's path may have"
            )
        return Address(path=path)
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not colon or not host or (":" in host and not text.startswith("[")):
        raise ValueError(f"{text!r} is no address: try 127.0.0.1:9935, [::1]:9935 or unix:/run/portwatch.sock")
    try:
        host.encode("idna")  # as looking it up will
    except UnicodeError:
        raise ValueError(f"{host!r} is no name of a host, in {text!r}") from None
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65_535):
        raise ValueError(f"{port!r} is no port, in {text!r}")
    return Address(host, int(port))


def listen(address: Address) -> socket.socket:
    """A socket that listens there. Raises PortwatchError, saying what is in the way."""
    try:
        return _listen_on_file(address.path) if address.path is not None else _listen(address)
    except OSError as error:
        raise PortwatchError(f"{address} cannot be listened on: {_reason(address, error)}") from None


def forget(address: Address, opened: socket.socket) -> None:
    """Closes what `listen` opened, and takes its socket file away."""
    opened.close()
    if address.path is not None:
        with suppress(OSError):  # somebody was quicker, or took the folder away
            os.unlink(address.path)


def _listen(address: Address) -> socket.socket:
    try:
        family, kind, _, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise OSError(error.errno, f"{address.host!r} is not known here ({error.strerror})") from None
    opened = socket.socket(family, kind)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind(where)
        opened.listen(BACKLOG)
    except OSError:
        opened.close()
        raise
    return opened


def _listen_on_file(path: str) -> socket.socket:
    _remove_left_behind(path)
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Between bind and a chmod anybody could connect.
    before = os.umask(0o177)
    try:
        opened.bind(path)
        opened.listen(BACKLOG)
    except OSError:
        opened.close()
        raise
    finally:
        os.umask(before)
    return opened


def _remove_left_behind(path: str) -> None:
    """A socket file outlives a daemon that was killed: it is removed if nobody answers there."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "there is a file of that name, which is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, "another daemon answers there")


def _reason(address: Address, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE and address.path is None:
        return f"the port is taken (portwatch who tcp/{address.port} shows by whom)"
    return error.strerror or str(error)
