"""Generates C for bcc that declares the structs of bpf/kernel.h with the running kernel's field offsets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from portwatch.engines.bcc.btf import Btf, FieldLocation
from portwatch.errors import EngineUnavailable

ITERATOR_FUNCTION = "bpf_iter_task_file"
"""The kernel function to which programs that iterate over open files attach. It exists since 5.8."""
_READS = ("bpf_probe_read_kernel", "bpf_probe_read_kernel_str", "bpf_probe_read_user")
"""BPF helpers to read memory. Since 5.5, the kernel implements each in a function of the same name."""

_CONTROLLERS = "cgroup_subsys_id"
_OPTIONAL_FIELDS = frozenset({"tcp_sock.is_mptcp", "mptcp_sock.first"})
BITS = _OPTIONAL_FIELDS | {
    "sock_common.skc_ipv6only",
    "sock.sk_type",
    "sock.sk_protocol",
    "sock.sk_userlocks",
}
"""The fields that read.h reads with READ_BITS, because some kernels have them as bit fields or lack them."""

FORMER_NAMES = {"start_boottime": "real_start_time"}  # renamed in 5.5 by cf25e24db61c

_READ_WHOLE = frozenset({"in6_addr"})
"""Structs that are only read as a whole. kernel.h declares their fields under our own names."""
_OPTIONAL_STRUCTS = frozenset({"bpf_iter_meta", "bpf_iter__task_file"})

_BLOCK = re.compile(r"#pragma clang attribute push.*?\n(.*)#pragma clang attribute pop", re.DOTALL)
_STRUCT = re.compile(r"^(?:struct (\w+) \{|typedef struct \{)$(.*?)^\}(?: (\w+))?;$", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^\t([^:\n]+[ *])(\w+)(\[\d+\])?(?: : \d+)?;.*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Field:
    """A field as kernel.h declares it."""

    kind: str
    name: str
    dimension: str


@dataclass(frozen=True, slots=True)
class Struct:
    """A struct as kernel.h declares it."""

    name: str
    is_typedef: bool
    fields: tuple[Field, ...]

    def member(self, field: Field) -> str:
        """Return the name of a field in the form `struct.field`."""
        return f"{self.name}.{field.name}"


def declared(header: str) -> Iterator[Struct]:
    """Yield the structs in the block of kernel.h whose field offsets are adapted to the running kernel."""
    block = _BLOCK.search(header)
    assert block, "kernel.h has no relocated structs"
    for struct, body, typedef in _STRUCT.findall(block[1]):
        fields = tuple(Field(kind.strip(), name, dimension) for kind, name, dimension in _FIELD.findall(body))
        yield Struct(struct or typedef, not struct, fields)


def names(header: str) -> set[str]:
    """Return the names of all types and functions to look up in the kernel's BTF."""
    return {struct.name for struct in declared(header)} | {ITERATOR_FUNCTION, _CONTROLLERS, *_READS}


def render(header: str, btf: Btf) -> str:
    """Return C code that declares each struct with its fields at the kernel's offsets.

    Raise EngineUnavailable if the kernel lacks a field that the programs need.
    """
    memory_id = btf.enumerator(_CONTROLLERS, "memory_cgrp_id")
    lines = ["#define LAYOUT", f"#define MEMORY_CONTROLLER {-1 if memory_id is None else memory_id}"]
    if btf.function(ITERATOR_FUNCTION) is not None:
        lines.append("#define HAS_ITERATOR")
    # If bcc does not find these helpers in kallsyms, it redefines them as macros. Without CAP_SYSLOG, kallsyms
    # is empty. Undo the redefinition if the kernel does have the helper.
    lines += [f"#undef {helper}" for helper in _READS if btf.function(helper) is not None]
    for struct in declared(header):
        size = btf.size(struct.name)
        if size is not None:
            lines += _struct(struct, size, btf)
        elif all(struct.member(field) in _OPTIONAL_FIELDS for field in struct.fields):
            lines += [_bits(field.name, None) for field in struct.fields]
        elif struct.name not in _OPTIONAL_STRUCTS:
            raise EngineUnavailable(f"this kernel's BTF has no struct {struct.name}")
    return "\n".join(lines) + "\n"


def _struct(struct: Struct, size: int, btf: Btf) -> Iterator[str]:
    kind = struct.name if struct.is_typedef else f"struct {struct.name}"
    bits, members, assertions = [], [], []
    for field in () if struct.name in _READ_WHOLE else struct.fields:
        location = btf.field(struct.name, field.name)
        if location is None and field.name in FORMER_NAMES:
            location = btf.field(struct.name, FORMER_NAMES[field.name])
        if location is None and struct.member(field) not in _OPTIONAL_FIELDS:
            raise EngineUnavailable(f"this kernel's struct {struct.name} has no field {field.name}")
        if struct.member(field) in BITS:
            bits.append(_bits(field.name, location))
        elif location:
            padding = f"char before_{field.name}[{location.offset // 8}]; " if location.offset else ""
            declaration = f"{field.kind} {field.name}{field.dimension};"
            members.append(f"\tstruct {{ {padding}{declaration} }};")
            assertions.append(_assert(f"__builtin_offsetof({kind}, {field.name}) == {location.offset // 8}"))
    yield from bits
    yield f"{'typedef union' if struct.is_typedef else f'struct {struct.name}'} {{"
    if not struct.is_typedef:
        yield "\tunion {"
    yield f"\tchar whole[{size}];"
    yield from members
    yield f"}} {struct.name};" if struct.is_typedef else "\t};\n};"
    # The generated declarations are right only if no struct is packed in the kernel. If a struct becomes
    # packed, these assertions make the compilation fail.
    yield from assertions


def _assert(condition: str) -> str:
    return f'_Static_assert({condition}, "{condition}");'


def _bits(name: str, location: FieldLocation | None) -> str:
    if location is None:
        return f"#define BITS_{name} 0, 1, 0, 0"
    byte, shift = divmod(location.offset, 8)
    return f"#define BITS_{name} {byte}, {(shift + location.width + 7) // 8}, {shift}, {location.width}"
