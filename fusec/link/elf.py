"""Reads the dynamic symbols of a 64-bit ELF shared object; every offset is checked."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from fusec.diagnostics import InternalError

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_DYNAMIC_SYMBOLS = 11
_GLOBAL, _WEAK = 1, 2


@dataclass(frozen=True, slots=True)
class DynamicSymbols:
    """What a shared object offers and what it needs.

    Attributes:
        defined: exported names and the bytes of each.
        undefined: names that a library must give; weak ones are left out.
    """

    defined: dict[str, int]
    undefined: frozenset[str]


def dynamic_symbols(code: bytes) -> DynamicSymbols:
    """The dynamic symbols of the shared object `code`.

    Raises:
        InternalError: it is not a 64-bit little-endian ELF file, or is cut short.
    """
    if len(code) < _HEADER.size or code[:6] != b"\x7fELF\x02\x01":
        raise InternalError("the linker's output is not a 64-bit ELF file")
    fields = _HEADER.unpack_from(code)
    table, entry_size, entries = fields[6], fields[11], fields[12]
    if entry_size != _SECTION.size:
        raise InternalError("the linker's output has sections of an unknown size")
    sections = [
        _SECTION.unpack(_part(code, table + index * entry_size, entry_size))
        for index in range(entries)
    ]
    defined: dict[str, int] = {}
    undefined: set[str] = set()
    for section in sections:
        if section[1] != _DYNAMIC_SYMBOLS:
            continue
        if section[6] >= len(sections):
            raise InternalError("the linker's output has symbols without names")
        names = _part(code, sections[section[6]][4], sections[section[6]][5])
        symbols = _part(code, section[4], section[5])
        for offset in range(_SYMBOL.size, len(symbols) - _SYMBOL.size + 1, _SYMBOL.size):
            name, info, _, place, _, size = _SYMBOL.unpack_from(symbols, offset)
            text = _name(names, name)
            if place != 0:
                defined[text] = size
            elif info >> 4 == _GLOBAL:
                undefined.add(text)
    return DynamicSymbols(defined, frozenset(undefined))


def _part(code: bytes, offset: int, size: int) -> bytes:
    if offset + size > len(code):
        raise InternalError("the linker's output is cut short")
    return code[offset : offset + size]


def _name(names: bytes, offset: int) -> str:
    end = names.find(b"\0", offset)
    if end < 0:
        raise InternalError("the linker's output has a name without an end")
    return names[offset:end].decode("utf-8", "replace")
