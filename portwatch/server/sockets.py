"""The addresses that the daemon listens on: TCP addresses and Unix socket files."""

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
_MAX_PATH_BYTES = 107
"""sockaddr_un.sun_path has 108 bytes; the last one is NUL."""


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address, or a socket file if `path` is set."""

    host: str = ""
    port: int = 0
    path: str | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return UNIX + self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(text: str) -> Address:
    """Parse `127.0.0.1:9935`, `[::1]:9935` or `unix:/run/portwatch.sock`. Raise ValueError."""
    if text.startswith(UNIX):
        path = text.removeprefix(UNIX)
        if not path.startswith("/"):
            raise ValueError(f"{text!r} is not an absolute path: use for example unix:/run/portwatch.sock")
        if len(os.fsencode(path)) > _MAX_PATH_BYTES:
            raise ValueError(
                f"{text!r} is too long: the path of a socket file has at most {_MAX_PATH_BYTES} bytes"
            )
        return Address(path=path)
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not colon or not host or (":" in host and not text.startswith("[")):
        raise ValueError(
            f"{text!r} is not an address: use for example 127.0.0.1:9935, [::1]:9935 or "
            "unix:/run/portwatch.sock"
        )
    try:
        host.encode("idna")  # getaddrinfo would refuse it too, but only when the daemon starts
    except UnicodeError:
        raise ValueError(f"{host!r} is not a host name, in {text!r}") from None
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65_535):
        raise ValueError(f"{port!r} is not a port, in {text!r}")
    return Address(host, int(port))


def listen(address: Address) -> socket.socket:
    """Return a socket that listens on an address. Raise PortwatchError if that is not possible."""
    try:
        return _listen_on_file(address.path) if address.path is not None else _listen_on_tcp(address)
    except OSError as error:
        raise PortwatchError(f"cannot listen on {address}: {_reason(address, error)}") from None


def close(address: Address, listening: socket.socket) -> None:
    """Close a socket that `listen` returned, and remove its socket file."""
    listening.close()
    if address.path is not None:
        with suppress(OSError):  # the file or its directory is already gone
            os.unlink(address.path)


def _listen_on_tcp(address: Address) -> socket.socket:
    try:
        family, kind, _, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise OSError(error.errno, f"the host {address.host!r} is not known ({error.strerror})") from None
    listening = socket.socket(family, kind)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(where)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _listen_on_file(path: str) -> socket.socket:
    _remove_stale(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # If the mode were set after bind, any user could connect in between.
    umask = os.umask(0o177)
    try:
        listening.bind(path)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    finally:
        os.umask(umask)
    return listening


def _remove_stale(path: str) -> None:
    """Remove a socket file that refuses connections. It was left by a daemon that was killed."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "the file exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, "another daemon is listening on it")


def _reason(address: Address, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE and address.path is None:
        return f"the port is in use (`portwatch who tcp/{address.port}` shows by which process)"
    return error.strerror or str(error)
