"""Parses BTF, the kernel's description of its own types, to find the offsets of fields."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from portwatch.errors import EngineUnavailable

_MAGIC = 0xEB9F
_PTR, _ARRAY, _STRUCT, _UNION, _TYPEDEF, _ENUM, _FUNC, _INT = 2, 3, 4, 5, 8, 6, 12, 1
_HEADER = struct.Struct("=HxxIIIII")
_TRANSPARENT = (8, 9, 10, 11, 18)
"""The kinds typedef, volatile, const, restrict and type tag. Each has the layout of the type it refers to."""
_EXTRA_WORDS = {1: 1, 3: 3, 14: 1, 17: 1}
"""The number of words, by kind, that follow the first three words of a type. Other kinds have none."""
_WORDS_PER_MEMBER = {4: 3, 5: 3, 6: 2, 13: 2, 15: 3, 19: 3}
"""The number of words, by kind, that describe each member. Other kinds have no members."""
_NEWEST_KIND = 19


@dataclass(frozen=True, slots=True)
class FieldLocation:
    """The position of a field in its struct, in bits."""

    offset: int
    width: int


class Btf:
    """The BTF of a kernel. Only types whose names are passed to the constructor can be looked up."""

    def __init__(self, content: bytes, names: set[str]) -> None:
        """Parse `content`, and index the types in `names`.

        Raise EngineUnavailable if `content` is not BTF, or has a kind of type that this parser does not know.
        """
        if len(content) < _HEADER.size or _HEADER.unpack_from(content)[0] != _MAGIC:
            raise EngineUnavailable(
                "the kernel's BTF is damaged: it does not start with the magic number of BTF"
            )
        _, header, start, length, strings, strings_length = _HEADER.unpack_from(content)
        self._strings = content[header + strings : header + strings + strings_length]
        self._words = memoryview(content[header + start : header + start + length]).cast("I")
        self._positions: list[int] = [0]
        """The index of each type's first word, by type id. Type 0 is void."""
        self._ids: dict[tuple[str, bool], int] = {}
        """Type ids. The key is the name of the type, and whether the type is a function."""
        self._index({self._string_offset(name): name for name in names})

    def _string_offset(self, name: str) -> int:
        """Return the offset of a name in the string section, or 0 if it is not there."""
        return self._strings.find(b"\0" + name.encode() + b"\0") + 1

    def _index(self, names: dict[int, str]) -> None:
        # This loop runs for each of a kernel's hundred thousand types, so it does little work for each.
        words, positions = self._words, self._positions
        fixed_words = [_EXTRA_WORDS.get(kind, 0) + 3 for kind in range(32)]
        words_per_member = [_WORDS_PER_MEMBER.get(kind, 0) for kind in range(32)]
        position, end = 0, len(words)
        names.pop(0, None)
        while position < end:
            info = words[position + 1]
            kind = info >> 24 & 31
            if words[position] in names and kind in (_STRUCT, _TYPEDEF, _ENUM, _FUNC):
                self._ids.setdefault((names[words[position]], kind == _FUNC), len(positions))
            positions.append(position)
            position += fixed_words[kind] + words_per_member[kind] * (info & 0xFFFF)
            if kind > _NEWEST_KIND:
                raise EngineUnavailable(
                    f"the kernel's BTF has a kind of type ({kind}) that this version of portwatch does not know"
                )

    def function(self, name: str) -> int | None:
        """Return the type id of a function, or None."""
        return self._ids.get((name, True))

    def size(self, name: str) -> int | None:
        """Return the size of a struct in bytes, or None if the kernel has no such struct."""
        type_id = self._ids.get((name, False))
        return None if type_id is None else self._size(type_id)

    def field(self, struct_name: str, name: str) -> FieldLocation | None:
        """Return the location of a field, or None. Fields of anonymous structs and unions are found, too."""
        type_id = self._ids.get((struct_name, False))
        return None if type_id is None else self._member(self._resolve(type_id), name)

    def enumerator(self, enum: str, name: str) -> int | None:
        """Return the value of an enumerator, or None."""
        type_id = self._ids.get((enum, False))
        if type_id is None:
            return None
        position = self._positions[type_id]
        count = self._words[position + 1] & 0xFFFF
        return next(
            (
                self._words[member + 1]
                for member in range(position + 3, position + 3 + 2 * count, 2)
                if self._strings.startswith(name.encode() + b"\0", self._words[member])
            ),
            None,
        )

    def _resolve(self, type_id: int) -> int:
        """Return the type that a chain of typedefs and qualifiers refers to."""
        while type_id and self._words[self._positions[type_id] + 1] >> 24 & 31 in _TRANSPARENT:
            type_id = self._words[self._positions[type_id] + 2]
        return type_id

    def _size(self, type_id: int) -> int:
        type_id = self._resolve(type_id)
        position = self._positions[type_id]
        kind = self._words[position + 1] >> 24 & 31
        if not type_id:
            return 0
        if kind == _PTR:
            return 8
        if kind == _ARRAY:
            return self._size(self._words[position + 3]) * self._words[position + 5]
        return self._words[position + 2]

    def _member(self, type_id: int, name: str) -> FieldLocation | None:
        words, position = self._words, self._positions[type_id]
        info = words[position + 1]
        if info >> 24 & 31 not in (_STRUCT, _UNION):
            return None
        has_widths = info >> 31
        for member in range(position + 3, position + 3 + 3 * (info & 0xFFFF), 3):
            member_name, member_type, offset = words[member], words[member + 1], words[member + 2]
            width, offset = (offset >> 24, offset & 0xFFFFFF) if has_widths else (0, offset)
            if not member_name:
                inner = self._member(self._resolve(member_type), name)
                if inner:
                    return FieldLocation(offset + inner.offset, inner.width)
            elif self._strings.startswith(name.encode() + b"\0", member_name):
                return self._location(offset, width, member_type)
        return None

    def _location(self, offset: int, width: int, type_id: int) -> FieldLocation:
        if not width:
            width = 8 * self._size(type_id)
            position = self._positions[self._resolve(type_id)]
            if self._words[position + 1] >> 24 & 31 == _INT:
                # In older BTF, the width of a bit field is stored in its integer type, not in the member.
                encoding = self._words[position + 3]
                offset, width = offset + (encoding >> 16 & 0xFF), encoding & 0xFF
        return FieldLocation(offset, width)
