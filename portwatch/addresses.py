"""Wildcard addresses, and the exposure of an address: the networks from which the address can be reached."""

from __future__ import annotations

from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_pton
from typing import Literal

Exposure = Literal["loopback", "private", "public", "all"]
EXPOSURES: tuple[Exposure, ...] = ("loopback", "private", "public", "all")

WILDCARDS = {"ipv4": "0.0.0.0", "ipv6": "::"}
MAPPED_PREFIX = "::ffff:"
"""The prefix of IPv4-mapped IPv6 addresses, which an IPv6 socket uses for IPv4."""

_PRIVATE = tuple(
    (inet_pton(AF_INET6 if ":" in prefix else AF_INET, prefix), bits)
    for prefix, bits in (
        ("10.0.0.0", 8),
        ("172.16.0.0", 12),
        ("192.168.0.0", 16),
        ("169.254.0.0", 16),
        ("100.64.0.0", 10),
        ("fc00::", 7),
        ("fe80::", 10),
    )
)


@lru_cache(maxsize=1024)
def exposure(address: str) -> Exposure:
    """Return the exposure of an address. docs/events.md defines the values."""
    if address in (*WILDCARDS.values(), MAPPED_PREFIX + WILDCARDS["ipv4"]):
        return "all"
    packed = inet_pton(AF_INET6 if ":" in address else AF_INET, address)
    if packed[:12] == bytes(10) + b"\xff\xff":
        packed = packed[12:]
    if packed == bytes(15) + b"\x01" or (len(packed) == 4 and packed[0] == 127):
        return "loopback"
    for prefix, bits in _PRIVATE:
        if len(prefix) == len(packed):
            shift = 8 * len(packed) - bits
            if int.from_bytes(packed, "big") >> shift == int.from_bytes(prefix, "big") >> shift:
                return "private"
    return "public"
