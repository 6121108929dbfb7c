"""A reader of BTF, the description of its own types that a kernel carries: where each field is."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from portwatch.errors import EngineUnavailable

_MAGIC = 0xEB9F
_PTR, _ARRAY, _STRUCT, _UNION, _TYPEDEF, _ENUM, _FUNC, _INT = 2, 3, 4, 5, 8, 6, 12, 1
_HEADER = struct.Struct("=HxxIIIII")
_TRANSPARENT = (8, 9, 10, 11, 18)
"""Typedef, volatile, const, restrict and type tag: the same type as what they refer to."""
_WORDS_BEHIND = {1: 1, 3: 3, 14: 1, 17: 1}
"""A kind's words behind the three that every type has; none where it is not listed."""
_WORDS_EACH = {4: 3, 5: 3, 6: 2, 13: 2, 15: 3, 19: 3}
"""A kind's words for each of its members."""
_NEWEST_KIND = 19


@dataclass(frozen=True, slots=True)
class FieldLocation:
    """Where a field is in its struct, in bits."""

    offset: int
    width: int


class Btf:
    """The types of a kernel of which some, by name, are looked for."""

    def __init__(self, content: bytes, names: set[str]) -> None:
        """Raises EngineUnavailable where `content` is not what this reader knows."""
        if len(content) < _HEADER.size or _HEADER.unpack_from(content)[0] != _MAGIC:
            raise EngineUnavailable("the kernel's BTF is none: it does not begin as BTF does")
        _, header, start, length, strings, strings_length = _HEADER.unpack_from(content)
        self._strings = content[header + strings : header + strings + strings_length]
        self._words = memoryview(content[header + start : header + start + length]).cast("I")
        self._at: list[int] = [0]
        """The word at which each type begins; type 0 is void."""
        self._named: dict[tuple[str, bool], int] = {}
        self._walk({self._offset(name): name for name in names})

    def _offset(self, name: str) -> int:
        return self._strings.find(b"\0" + name.encode() + b"\0") + 1

    def _walk(self, wanted: dict[int, str]) -> None:
        # A hundred thousand types: everything that the loop does for each of them shows.
        words, at = self._words, self._at
        behind = [_WORDS_BEHIND.get(kind, 0) + 3 for kind in range(32)]
        each = [_WORDS_EACH.get(kind, 0) for kind in range(32)]
        position, end = 0, len(words)
        wanted.pop(0, None)
        while position < end:
            info = words[position + 1]
            kind = info >> 24 & 31
            if words[position] in wanted and kind in (_STRUCT, _TYPEDEF, _ENUM, _FUNC):
                self._named.setdefault((wanted[words[position]], kind == _FUNC), len(at))
            at.append(position)
            position += behind[kind] + each[kind] * (info & 0xFFFF)
            if kind > _NEWEST_KIND:
                raise EngineUnavailable(f"the kernel's BTF has a kind of type ({kind}) that is not known here")

    def function(self, name: str) -> int | None:
        """The id of a function."""
        return self._named.get((name, True))

    def size(self, name: str) -> int | None:
        """The bytes of a struct; None if there is none of that name."""
        found = self._named.get((name, False))
        return None if found is None else self._size(found)

    def field(self, struct_name: str, name: str) -> FieldLocation | None:
        """Where a field is; in an anonymous struct or union of this struct, too."""
        found = self._named.get((struct_name, False))
        return None if found is None else self._member(self._bare(found), name)

    def enumerator(self, enum: str, name: str) -> int | None:
        """The value of a name that an enum gives to it."""
        found = self._named.get((enum, False))
        if found is None:
            return None
        position = self._at[found]
        count = self._words[position + 1] & 0xFFFF
        return next(
            (
                self._words[member + 1]
                for member in range(position + 3, position + 3 + 2 * count, 2)
                if self._strings.startswith(name.encode() + b"\0", self._words[member])
            ),
            None,
        )

    def _bare(self, type_id: int) -> int:
        while type_id and self._words[self._at[type_id] + 1] >> 24 & 31 in _TRANSPARENT:
            type_id = self._words[self._at[type_id] + 2]
        return type_id

    def _size(self, type_id: int) -> int:
        type_id = self._bare(type_id)
        position = self._at[type_id]
        kind = self._words[position + 1] >> 24 & 31
        if not type_id:
            return 0
        if kind == _PTR:
            return 8
        if kind == _ARRAY:
            return self._size(self._words[position + 3]) * self._words[position + 5]
        return self._words[position + 2]

    def _member(self, type_id: int, name: str) -> FieldLocation | None:
        words, position = self._words, self._at[type_id]
        info = words[position + 1]
        if info >> 24 & 31 not in (_STRUCT, _UNION):
            return None
        has_widths = info >> 31
        for member in range(position + 3, position + 3 + 3 * (info & 0xFFFF), 3):
            label, kind, offset = words[member], words[member + 1], words[member + 2]
            width, offset = (offset >> 24, offset & 0xFFFFFF) if has_widths else (0, offset)
            if not label:
                found = self._member(self._bare(kind), name)
                if found:
                    return FieldLocation(offset + found.offset, found.width)
            elif self._strings.startswith(name.encode() + b"\0", label):
                return self._place(offset, width, kind)
        return None

    def _place(self, offset: int, width: int, type_id: int) -> FieldLocation:
        if not width:
            width = 8 * self._size(type_id)
            position = self._at[self._bare(type_id)]
            if self._words[position + 1] >> 24 & 31 == _INT:
                # Before kernels gave the width with the member, an integer type of its own did.
                encoding = self._words[position + 3]
                offset, width = offset + (encoding >> 16 & 0xFF), encoding & 0xFF
        return FieldLocation(offset, width)
