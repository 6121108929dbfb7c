"""The structs of bpf/kernel.h, laid out as the running kernel has them: C for bcc to compile."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from portwatch.engines.bcc.btf import Btf, FieldLocation
from portwatch.errors import EngineUnavailable

ITERATOR = "bpf_iter_task_file"
"""The kernel's function that stands for the pass over open files, from 5.8 on."""
_READS = ("bpf_probe_read_kernel", "bpf_probe_read_kernel_str", "bpf_probe_read_user")
"""The kernel's functions behind these helpers, from 5.5 on."""

_CONTROLLERS = "cgroup_subsys_id"
_OPTIONAL_FIELDS = frozenset({"tcp_sock.is_mptcp", "mptcp_sock.first"})
BITS = _OPTIONAL_FIELDS | {
    "sock_common.skc_ipv6only",
    "sock.sk_type",
    "sock.sk_protocol",
    "sock.sk_userlocks",
}
"""What read.h reads by READ_BITS, as it is a bit field on some kernels, or as some have it not."""

FORMER_NAMES = {"start_boottime": "real_start_time"}  # until 5.5, cf25e24db61c

_READ_WHOLE = frozenset({"in6_addr"})
"""Structs whose fields are not looked at, and have in kernel.h a name of ours."""
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
        """The name of a field of its, which no other struct's has."""
        return f"{self.name}.{field.name}"


def declared(header: str) -> Iterator[Struct]:
    """What the relocated part of kernel.h declares."""
    block = _BLOCK.search(header)
    assert block, "kernel.h has lost its structs"
    for struct, body, typedef in _STRUCT.findall(block[1]):
        fields = tuple(Field(kind.strip(), name, dimension) for kind, name, dimension in _FIELD.findall(body))
        yield Struct(struct or typedef, not struct, fields)


def names(header: str) -> set[str]:
    """What has to be looked for in the kernel's BTF."""
    return {struct.name for struct in declared(header)} | {ITERATOR, _CONTROLLERS, *_READS}


def render(header: str, btf: Btf) -> str:
    """C that declares each struct so that every field is where the kernel has it.

    Raises EngineUnavailable where this kernel lacks a field that the programs need.
    """
    memory = btf.enumerator(_CONTROLLERS, "memory_cgrp_id")
    lines = ["#define LAYOUT", f"#define MEMORY_CONTROLLER {-1 if memory is None else memory}"]
    if btf.function(ITERATOR) is not None:
        lines.append("#define HAS_ITERATOR")
    # bcc looks for them in kallsyms, which is empty without CAP_SYSLOG, and defines them away.
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
    bits, members, asserted = [], [], []
    for field in () if struct.name in _READ_WHOLE else struct.fields:
        place = btf.field(struct.name, field.name)
        if place is None and field.name in FORMER_NAMES:
            place = btf.field(struct.name, FORMER_NAMES[field.name])
        if place is None and struct.member(field) not in _OPTIONAL_FIELDS:
            raise EngineUnavailable(f"this kernel's struct {struct.name} has no field {field.name}")
        if struct.member(field) in BITS:
            bits.append(_bits(field.name, place))
        elif place:
            padding = f"char before_{field.name}[{place.offset // 8}]; " if place.offset else ""
            declaration = f"{field.kind} {field.name}{field.dimension};"
            members.append(f"\tstruct {{ {padding}{declaration} }};")
            asserted.append(_assert(f"__builtin_offsetof({kind}, {field.name}) == {place.offset // 8}"))
    yield from bits
    yield f"{'typedef union' if struct.is_typedef else f'struct {struct.name}'} {{"
    if not struct.is_typedef:
        yield "\tunion {"
    yield f"\tchar whole[{size}];"
    yield from members
    yield f"}} {struct.name};" if struct.is_typedef else "\t};\n};"
    # A kernel's packed struct is none of these: should one become it, this says so.
    yield from asserted


def _assert(condition: str) -> str:
    return f'_Static_assert({condition}, "{condition}");'


def _bits(name: str, place: FieldLocation | None) -> str:
    if place is None:
        return f"#define BITS_{name} 0, 1, 0, 0"
    byte, shift = divmod(place.offset, 8)
    return f"#define BITS_{name} {byte}, {(shift + place.width + 7) // 8}, {shift}, {place.width}"
