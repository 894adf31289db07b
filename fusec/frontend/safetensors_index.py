"""Safetensors files of a model folder: what is in them, and bytes when they are asked for.

A header is JSON that says where each tensor lies; the bytes are mapped, so that a weight takes
memory only while it is packed.  Nothing in a file is trusted: every offset is checked.
Source: the format description of safetensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusec.diagnostics import InputError
from fusec.dtypes import BY_SAFETENSORS, DTYPES
from fusec.ir.types import TensorType
from fusec.ir.weights import Bits, Weight, digest

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER = 512 << 20
_AGAIN = "copy or download it again"


@dataclass(frozen=True, slots=True)
class Stored:
    """Where the bytes of one tensor are.

    Attributes:
        path: the file.
        begin: position of the first byte in the file.
        dtype: fusec's name.
        shape: sizes; bytes along the last axis where one holds two elements.
    """

    path: Path
    begin: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def read(self) -> Bits:
        """The elements, in the storage type of the dtype; mapped, not copied."""
        storage = DTYPES[self.dtype].numpy
        if self.nbytes == 0:
            return np.empty(self.shape, storage)
        # "c": what is written to the array stays in memory, and torch takes only writable arrays.
        return np.memmap(self.path, storage, "c", self.begin, self.shape)

    def weight(self, name: str) -> Weight:
        """A weight called `name` that reads these bytes."""
        kind = TensorType(self.dtype, self.shape)
        where = digest("stored", str(self.path.absolute()), str(self.begin), str(kind))
        return Weight(name, kind, self.read, where)


def find_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that make up the model in `folder`; none when there are none.

    `model.safetensors.index.json` says which when it is there, else `model.safetensors` is it,
    else the only `*.safetensors` file.

    Raises:
        InputError: the index is damaged or names a file that is missing or outside the folder.
    """
    index = folder / INDEX
    if index.is_file():
        names = sorted(set(_weight_map(index).values()))
        for name in names:
            if Path(name).name != name:
                raise InputError(
                    f"the index names a file outside the folder: `{name}`", at=f"{index}"
                )
            if not (folder / name).is_file():
                hint = (
                    "download the file, or compile with `--weights none` from `config.json` alone"
                )
                raise InputError(
                    f"the index names `{name}`, which is missing", at=f"{index}", hint=hint
                )
        return tuple(folder / name for name in names)
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,)
    others = sorted(folder.glob("*.safetensors"))
    return (others[0],) if len(others) == 1 else ()


def read_folder(folder: Path) -> dict[str, Stored]:
    """Every tensor of the model in `folder`, by its name in the files.

    Raises:
        InputError: a file is damaged, or two files hold the same tensor.
    """
    found: dict[str, Stored] = {}
    for path in find_files(folder):
        for name, stored in read_header(path).items():
            if name in found:
                raise InputError(f"`{name}` is in two files", at=f"{found[name].path} and {path}")
            found[name] = stored
    return found


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors in the file at `path`, by name.

    Raises:
        InputError: the file is not a sound safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise InputError("the safetensors header is cut off", at=f"{path}", hint=_AGAIN)
        text = file.read(length)
    header = json_object(text, path)
    tensors: dict[str, Stored] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            tensors[name] = _stored(path, name, entry, 8 + length, size)
    return tensors


def _stored(path: Path, name: str, entry: object, base: int, size: int) -> Stored:
    where = f"{path}: {name}"
    if not isinstance(entry, Mapping):
        raise InputError("a safetensors entry is not an object", at=where, hint=_AGAIN)
    dtype = BY_SAFETENSORS.get(str(entry.get("dtype")))
    if dtype is None:
        raise InputError(f"unknown safetensors dtype `{entry.get('dtype')}`", at=where)
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:  # type: ignore[arg-type]
        raise InputError(
            "a safetensors entry has no sound shape and offsets", at=where, hint=_AGAIN
        )
    begin, end = offsets  # type: ignore[misc]
    sizes: tuple[int, ...] = tuple(shape)  # type: ignore[arg-type]
    if dtype.kind == "packed":
        if not sizes or sizes[-1] % 2:
            raise InputError(f"rows of `{dtype.safetensors}` are not whole bytes", at=where)
        sizes = (*sizes[:-1], sizes[-1] // 2)
    stored = Stored(path, base + begin, dtype.name, sizes)
    if begin + stored.nbytes != end or base + end > size:
        raise InputError(
            "the bytes of a tensor do not fit its shape or the file", at=where, hint=_AGAIN
        )
    return stored


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 1 << 48 for item in value
    )


def _weight_map(index: Path) -> dict[str, str]:
    held = json_object(index.read_bytes(), index).get("weight_map")
    if not isinstance(held, dict) or not all(isinstance(name, str) for name in held.values()):
        raise InputError("the index has no `weight_map`", at=f"{index}", hint=_AGAIN)
    return held


def json_object(text: bytes, path: Path) -> dict[str, Any]:
    """The object that a file of JSON holds.

    Raises:
        InputError: it holds something else.
    """
    try:
        held = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not sound JSON: {error}", at=f"{path}", hint=_AGAIN) from None
    if not isinstance(held, dict):
        raise InputError("not a JSON object", at=f"{path}", hint=_AGAIN)
    return held
