"""The safetensors format, read from bytes and laid out so that tensors can be mapped.

A safetensors file may have no holes, so the space that aligns a tensor is itself a tensor of
zeros named `fusec.padding.<n>`; readers of the format see a valid file.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusec.dtypes import BY_SAFETENSORS, DTYPES
from fusec.runtime.documents import MAX_RANK, Field, parse_json
from fusec.runtime.errors import MalformedError, OutOfBoundsError

MAX_HEADER = 100_000_000
PADDING = re.compile(r"fusec\.padding\.\d{1,9}")
PAGE = 4096
LINE = 64
LARGE = 1 << 20


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """One tensor of a file.

    Attributes:
        name: its name.
        dtype: fusec's name of its element type.
        shape: its sizes, in elements of `dtype`.
        offset: where it begins, from the end of the header.
        bytes: how long it is.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class TensorFileLayout:
    """Where everything goes in a file that is about to be written.

    Attributes:
        header: the first bytes, a multiple of `PAGE`; tensors follow.
        tensors: in the order of the file, padding included.
        bytes: the whole file.
    """

    header: bytes
    tensors: tuple[TensorPlace, ...]
    bytes: int


def tensor_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes that a contiguous tensor takes."""
    count = 1
    for size in shape:
        count *= size
    return count * DTYPES[dtype].itemsize


def lay_out(tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> TensorFileLayout:
    """Place `(name, dtype, shape)` in the given order.

    Tensors of 1 MiB and more begin on a page, the others on a cache line.
    """
    places: list[TensorPlace] = []
    position = 0
    for name, dtype, shape in tensors:
        size = tensor_bytes(dtype, shape)
        alignment = PAGE if size >= LARGE else LINE
        gap = -position % alignment
        if gap:
            filler = f"fusec.padding.{len(places)}"
            places.append(TensorPlace(filler, "u8", (gap,), position, gap))
        places.append(TensorPlace(name, dtype, shape, position + gap, size))
        position += gap + size
    header = {
        place.name: {
            "dtype": DTYPES[place.dtype].safetensors,
            "shape": _file_shape(place),
            "data_offsets": [place.offset, place.offset + place.bytes],
        }
        for place in places
    }
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode("ascii")
    text += b" " * (-(8 + len(text)) % PAGE)
    return TensorFileLayout(
        struct.pack("<Q", len(text)) + text, tuple(places), 8 + len(text) + position
    )


def is_laid_out(path: Path) -> bool:
    """Whether a file begins as one that `lay_out` is the layout of: its header ends on a page."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and not (8 + struct.unpack("<Q", start[:8])[0]) % PAGE


def header_bytes(data: memoryview, at: str) -> int:
    """How long the header of a file is, its length included.

    Raises:
        MalformedError: the file is too short to have one.
        OutOfBoundsError: it is longer than the file.
    """
    if len(data) < 8:
        raise MalformedError("the file is too short for safetensors", at=at)
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(MAX_HEADER, len(data) - 8):
        raise OutOfBoundsError("the safetensors header is longer than the file", at=at)
    return 8 + int(length)


def read_header(data: memoryview, at: str) -> tuple[dict[str, TensorPlace], int]:
    """The tensors of a file by name in the order of their bytes, and the length of the header.

    Raises:
        MalformedError: it is not safetensors, or its tensors overlap or leave holes.
        OutOfBoundsError: it says that it is longer than it is.
    """
    length = header_bytes(data, at) - 8
    document = Field(parse_json(data[8 : 8 + length], at), at)
    places = [_place(name, field) for name, field in document.members() if name != "__metadata__"]
    places.sort(key=lambda place: (place.offset, place.bytes))
    position = 0
    for place in places:
        if place.offset != position:
            raise MalformedError(f"`{place.name}` overlaps another tensor or leaves a hole", at=at)
        position += place.bytes
    if position != len(data) - 8 - length:
        raise OutOfBoundsError(
            f"the tensors take {position} bytes but the file has {len(data) - 8 - length}",
            at=at,
        )
    return {place.name: place for place in places}, 8 + length


def as_array(data: memoryview, dtype: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """`data` seen as an array of `dtype`'s storage type; shares the memory."""
    return np.frombuffer(data, dtype=DTYPES[dtype].numpy).reshape(shape)


def _file_shape(place: TensorPlace) -> list[int]:
    """The format counts 4-bit elements, fusec the bytes that hold two."""
    if place.dtype == "f4e2m1x2" and place.shape:
        return [*place.shape[:-1], 2 * place.shape[-1]]
    return list(place.shape)


def _place(name: str, field: Field) -> TensorPlace:
    dtype_name = field.get("dtype").string()
    if dtype_name not in BY_SAFETENSORS:
        raise field.get("dtype").error("a known dtype")
    dtype = BY_SAFETENSORS[dtype_name].name
    shape = field.get("shape").tuple_of(lambda item: item.integer(), MAX_RANK)
    if dtype == "f4e2m1x2" and shape:
        if shape[-1] % 2:
            raise field.get("shape").error("even in its last dim, for F4")
        shape = (*shape[:-1], shape[-1] // 2)
    offsets = field.get("data_offsets").items(2)
    if len(offsets) != 2:
        raise field.get("data_offsets").error("two offsets")
    begin, end = (offset.integer() for offset in offsets)
    if end - begin != tensor_bytes(dtype, shape):
        raise field.error("as long as its shape and dtype say")
    return TensorPlace(name, dtype, shape, begin, end - begin)
