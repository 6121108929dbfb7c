"""The parser of BTF, and the C structs generated for bcc with the field offsets of the running kernel."""

import struct

import pytest
from support import ROOT

from portwatch.engines.bcc import layout
from portwatch.engines.bcc.btf import Btf, FieldLocation
from portwatch.errors import EngineUnavailable
from portwatch.linux.kernel import VMLINUX

KERNEL_H = (ROOT / "bpf" / "kernel.h").read_text()

INT, STRUCT, UNION, ENUM, CONST, FUNC = 1, 4, 5, 6, 10, 12


class Types:
    """Builds BTF in the form in which the kernel has it."""

    def __init__(self):
        self._strings = b"\0"
        self._types = b""
        self._count = 0

    def _name(self, name):
        if not name:
            return 0
        if f"\0{name}\0".encode() in self._strings:
            return self._strings.index(f"\0{name}\0".encode()) + 1
        offset = len(self._strings)
        self._strings += name.encode() + b"\0"
        return offset

    def _add(self, name, kind, last, vlen=0, flag=0, rest=b""):
        info = flag << 31 | kind << 24 | vlen
        self._types += struct.pack("=III", self._name(name), info, last) + rest
        self._count += 1
        return self._count

    def integer(self, name, size, offset=0, width=None):
        encoding = struct.pack("=I", offset << 16 | (8 * size if width is None else width))
        return self._add(name, INT, size, rest=encoding)

    def composite(self, kind, name, size, members, flag=0):
        rest = b"".join(struct.pack("=III", self._name(label), of, at) for label, of, at in members)
        return self._add(name, kind, size, len(members), flag, rest)

    def const(self, of):
        return self._add("", CONST, of)

    def function(self, name):
        return self._add(name, FUNC, 0)

    def content(self):
        sizes = (24, 0, len(self._types), len(self._types), len(self._strings))
        return struct.pack("=HBBIIIII", 0xEB9F, 1, 0, *sizes) + self._types + self._strings


def test_a_field_of_an_anonymous_struct_in_an_anonymous_union_is_found():
    types = Types()
    word = types.integer("int", 4)
    inner = types.composite(STRUCT, "", 8, [("other", word, 0), ("wanted", types.const(word), 32)])
    union = types.composite(UNION, "", 8, [("", inner, 0)])
    types.composite(STRUCT, "outer", 16, [("first", word, 0), ("", union, 64)])
    btf = Btf(types.content(), {"outer"})
    assert btf.field("outer", "wanted") == FieldLocation(offset=96, width=32)
    assert btf.field("outer", "missing") is None
    assert btf.field("absent", "wanted") is None
    assert btf.size("outer") == 16


def test_a_bit_field_is_found_in_new_and_in_old_btf():
    types = Types()
    byte = types.integer("char", 1)
    three = types.integer("char", 1, offset=4, width=3)
    types.composite(STRUCT, "new", 4, [("bits", byte, 2 << 24 | 19)], flag=1)
    types.composite(STRUCT, "old", 4, [("bits", three, 8)])
    btf = Btf(types.content(), {"new", "old"})
    assert btf.field("new", "bits") == FieldLocation(offset=19, width=2)
    assert btf.field("old", "bits") == FieldLocation(offset=12, width=3)


def test_a_function_and_a_struct_of_the_same_name_are_both_found():
    types = Types()
    function = types.function("twice")
    types.composite(STRUCT, "twice", 8, [])
    btf = Btf(types.content(), {"twice"})
    assert btf.function("twice") == function
    assert btf.size("twice") == 8


@pytest.mark.parametrize("content", [b"", b"no BTF at all, but long enough for a header"])
def test_data_that_is_not_btf_is_refused(content):
    with pytest.raises(EngineUnavailable, match="BTF"):
        Btf(content, {"sock"})


def test_btf_with_an_unknown_kind_of_type_is_refused():
    types = Types()
    types._add("new", 31, 0)
    with pytest.raises(EngineUnavailable, match="kind of type"):
        Btf(types.content(), {"new"})


def test_the_structs_of_kernel_h_are_parsed():
    structs = {struct.name: struct for struct in layout.declared(KERNEL_H)}
    assert structs["possible_net_t"].is_typedef
    assert [field.name for field in structs["upid"].fields] == ["nr", "ns"]
    fields = {field.name: field for field in structs["sock_common"].fields}
    assert fields["skc_ipv6only"].kind == "unsigned char"
    members = {struct.member(field) for struct in structs.values() for field in struct.fields}
    assert members >= layout.BITS
    assert layout.Field("char", "comm", "[16]") in structs["task_struct"].fields
    assert layout.Field("struct file **", "fd", "") in structs["fdtable"].fields


def test_if_the_kernel_lacks_a_field_the_error_names_it():
    types = Types()
    types.composite(STRUCT, "hlist_node", 16, [])
    with pytest.raises(EngineUnavailable, match="struct hlist_node has no field next"):
        layout.render(KERNEL_H, Btf(types.content(), layout.names(KERNEL_H)))


def test_the_value_of_an_enumerator_is_found():
    types = Types()
    members = b"".join(
        struct.pack("=Ii", types._name(name), value) for name, value in (("cpu", 2), ("memory", 4))
    )
    types._add("controllers", ENUM, 4, 2, rest=members)
    btf = Btf(types.content(), {"controllers", "others"})
    assert btf.enumerator("controllers", "memory") == 4
    assert btf.enumerator("controllers", "net") is None
    assert btf.enumerator("others", "memory") is None


@pytest.mark.skipif(not VMLINUX.exists(), reason="this kernel has no BTF")
def test_the_running_kernels_btf_is_parsed():
    btf = Btf(VMLINUX.read_bytes(), layout.names(KERNEL_H))
    assert btf.field("sock", "__sk_common") == FieldLocation(0, 8 * btf.size("sock_common"))
    assert btf.field("sock_common", "skc_ipv6only").width == 1
    assert "struct sock {" in layout.render(KERNEL_H, btf)
