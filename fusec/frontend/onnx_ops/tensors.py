"""Tensors of an ONNX file: their types, and their bytes when they are wanted.

Nothing is read from an external file while importing but its size.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusec.diagnostics import InputError, UnsupportedError
from fusec.dtypes import DTYPES, bf16_to_f32
from fusec.frontend.onnx_ops.base import Value, objects
from fusec.ir.types import TensorType
from fusec.ir.weights import Bits, Weight, digest

DTYPE_OF: dict[int, str] = {
    1: "f32",
    2: "u8",
    3: "i8",
    5: "i16",
    6: "i32",
    7: "i64",
    9: "bool",
    10: "f16",
    11: "f64",
    16: "bf16",
    17: "f8e4m3fn",
    18: "f8e4m3fnuz",
    19: "f8e5m2",
    24: "e8m0",
}
"""fusec's names of the element types of `onnx.TensorProto.DataType`."""

ELEMENT_OF: dict[str, int] = {name: element for element, name in DTYPE_OF.items()}

UINT4, INT4 = 21, 22
_FOREIGN = {
    4: "uint16",
    8: "string",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    20: "float8e5m2fnuz",
    23: "float4e2m1",
    25: "uint2",
    26: "int2",
}
_EXTERNAL = 1
_MAX_ELEMENTS = 1 << 40


def dtype_of(element: int, what: str) -> str:
    """fusec's name of an element type.

    Raises:
        UnsupportedError: fusec has no such type.
        InputError: ONNX has none either.
    """
    found = DTYPE_OF.get(element)
    if found is not None:
        return found
    if element in (UINT4, INT4):
        message = f"{what} has 4-bit integers, which only `DequantizeLinear` may read"
        raise UnsupportedError(message)
    if element in _FOREIGN:
        message = f"{what} has the element type `{_FOREIGN[element]}`, which fusec has not"
        known = ", ".join(f"`{name}`" for name in DTYPE_OF.values())
        raise UnsupportedError(message, hint=f"export the model with one of {known}")
    raise InputError(f"{what} has the unknown element type {element}")


@dataclass(frozen=True, slots=True)
class TensorSource:
    """Where the tensors of a file are.

    Attributes:
        folder: the folder of the model; external tensors are in it.
        also: the folder of the file that the model's path links to, as in a download cache.
        files: those that hold external tensors, as they are found.
    """

    folder: Path
    also: Path
    files: set[Path]

    def external(self, location: str, name: str) -> Path:
        """The file that holds an external tensor.

        Raises:
            InputError: the path leaves the model's folder, or there is no such file.
        """
        at = f"tensor `{name}`"
        parts = re.split(r"[/\\]", location)
        if not location or "\0" in location or ".." in parts or location[:1] in "/\\":
            raise _escape(location, at)
        if re.match(r"[A-Za-z]:", location) or Path(location).is_absolute():
            raise _escape(location, at)
        path = self.folder / location
        real = path.resolve()
        homes = (self.folder.resolve(), self.also.resolve())
        if not any(real.is_relative_to(home) for home in homes):
            raise _escape(location, at)
        if not real.is_file():
            hint = "copy the external data files next to the model"
            raise InputError(f"there is no file `{location}` beside the model", at=at, hint=hint)
        self.files.add(real)
        return real


def _escape(location: str, at: str) -> InputError:
    return InputError(
        f"external data `{location[:200]}` is not inside the model's folder",
        at=at,
        hint="fusec reads no file outside the folder of the model",
    )


@dataclass(frozen=True, slots=True)
class Packed:
    """A tensor of 4-bit integers, two in a byte, the first in the low bits.

    Attributes:
        shape: sizes in elements.
        signed: whether elements are in -8..7 rather than 0..15.
        read: gives the bytes.
        name: of the tensor.
        identity: equal for equal contents.
    """

    shape: tuple[int, ...]
    signed: bool
    read: Callable[[], NDArray[np.uint8]]
    name: str
    identity: str

    def weight(self) -> Weight:
        """The elements, one in a byte."""
        kind = TensorType("i8" if self.signed else "u8", self.shape)

        def unpack() -> Bits:
            packed = self.read()
            both = np.stack((packed & 15, packed >> 4), axis=-1).ravel()
            both = both[: math.prod(self.shape)].reshape(self.shape)
            if not self.signed:
                return both
            signed = both.astype(np.int8)
            return np.where(signed > 7, signed - 16, signed).astype(np.int8)

        return Weight(self.name, kind, unpack, digest("unpack", str(kind), self.identity))


def read_tensor(tensor: Any, source: TensorSource, name: str | None = None) -> Value:
    """A tensor of the file as a value; small ones are known in full.

    Args:
        tensor: an `onnx.TensorProto`.
        source: where external data is.
        name: what to call it, if not by its own name.

    Raises:
        InputError: its bytes do not fit its type, or lie outside the model's folder.
        UnsupportedError: it has an element type that fusec has not.
    """
    called = name or tensor.name or "constant"
    what = f"tensor `{called}`"
    shape = tuple(int(dim) for dim in tensor.dims)
    if any(dim < 0 for dim in shape) or math.prod(shape) > _MAX_ELEMENTS:
        raise InputError(f"{what} has the impossible shape {list(shape)}")
    if tensor.HasField("segment"):
        raise UnsupportedError(f"{what} is stored in segments")
    if tensor.data_type in (UINT4, INT4):
        packed = _packed(tensor, source, called, shape)
        weight = packed.weight()
        return Value(weight.type, weight=weight, four_bits=True)
    dtype = dtype_of(tensor.data_type, what)
    kind = TensorType(dtype, shape)
    read, identity = _reader(tensor, source, called, kind)
    weight = Weight(called, kind, read, identity)
    return Value(kind, content=_content(weight), weight=weight)


def _content(weight: Weight) -> Any:
    """The elements of a tensor that is small enough to be computed with."""
    count = math.prod(weight.shape)
    kind = weight.type.element
    if kind.is_float:
        fits = count == 1 and weight.type.dtype in ("f64", "f32", "f16", "bf16")
    else:
        fits = count <= 16 or (weight.type.rank == 1 and count <= 64)
    if not fits:
        return None
    bits = weight.load()
    array = bf16_to_f32(bits.astype(np.uint16)) if weight.type.dtype == "bf16" else bits
    return objects(elements(array), weight.shape)


def shortest(number: float) -> float:
    """The number that a person wrote, from its float32: 1e-05 rather than 9.99999974e-06."""
    return float(str(np.float32(number)))


def elements(array: NDArray[Any]) -> list[Any]:
    """Elements as Python numbers; see `shortest`."""
    items = array.ravel().tolist()
    return [shortest(item) for item in items] if array.dtype == np.float32 else items


def _reader(
    tensor: Any, source: TensorSource, name: str, kind: TensorType
) -> tuple[Callable[[], Bits], str]:
    storage = DTYPES[kind.dtype].numpy
    shape = tuple(int(dim) for dim in tensor.dims)
    expected = math.prod(shape) * storage.itemsize
    if tensor.data_location == _EXTERNAL:
        raw, identity = _external(tensor, source, name, expected)
        return lambda: raw().view(storage).reshape(shape), digest(identity, str(kind))
    if tensor.HasField("raw_data"):
        data = tensor.raw_data
        if len(data) != expected:
            raise _short(name, len(data), expected)
        identity = hashlib.sha256(data).hexdigest()

        def read() -> Bits:
            return np.frombuffer(tensor.raw_data, dtype=storage).reshape(shape)

        return read, digest("onnx", str(kind), identity)
    array = _typed(tensor, kind, name).reshape(shape)
    return lambda: array, digest("onnx", str(kind), hashlib.sha256(array.tobytes()).hexdigest())


def _external(
    tensor: Any, source: TensorSource, name: str, expected: int
) -> tuple[Callable[[], NDArray[np.uint8]], str]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    path = source.external(location, name)
    try:
        offset = int(entries.get("offset", "0") or "0")
        length = int(entries.get("length", str(expected)) or expected)
    except ValueError:
        raise InputError(f"tensor `{name}` has an external offset that is no number") from None
    if length != expected:
        raise _short(name, length, expected)
    if offset < 0 or offset + length > path.stat().st_size:
        message = f"tensor `{name}` ends outside the file `{location}`"
        raise InputError(message, hint="the external data file is truncated; copy it again")

    def read() -> NDArray[np.uint8]:
        data = np.fromfile(path, dtype=np.uint8, count=expected, offset=offset)
        if data.size != expected:
            raise InputError(f"tensor `{name}` ends outside the file `{location}`")
        return data

    return read, digest("onnx-external", location, str(offset), str(length))


def _short(name: str, length: int, expected: int) -> InputError:
    message = f"tensor `{name}` has {length} bytes of data instead of {expected}"
    return InputError(message, hint="the file is damaged")


_FIELDS = {"f32": "float_data", "f64": "double_data", "i64": "int64_data"}


def _typed(tensor: Any, kind: TensorType, name: str) -> Bits:
    """Elements that are stored as numbers of the protocol buffer rather than as bytes."""
    storage = DTYPES[kind.dtype].numpy
    field = _FIELDS.get(kind.dtype, "int32_data")
    numbers = getattr(tensor, field)
    expected = math.prod(int(dim) for dim in tensor.dims)
    if len(numbers) != expected:
        raise _short(name, len(numbers) * storage.itemsize, expected * storage.itemsize)
    if kind.dtype == "f16":
        return np.asarray(numbers, dtype=np.int64).astype(np.uint16).view(np.float16)
    if field == "int32_data":
        return np.asarray(numbers, dtype=np.int64).astype(storage)
    return np.asarray(numbers, dtype=storage)


def _packed(tensor: Any, source: TensorSource, name: str, shape: tuple[int, ...]) -> Packed:
    signed = tensor.data_type == INT4
    expected = (math.prod(shape) + 1) // 2
    if tensor.data_location == _EXTERNAL:
        read, identity = _external(tensor, source, name, expected)
        return Packed(shape, signed, read, name, identity)
    if tensor.HasField("raw_data"):
        data = np.frombuffer(tensor.raw_data, dtype=np.uint8)
    else:
        data = np.asarray(tensor.int32_data, dtype=np.int64).astype(np.uint8)
    if data.size != expected:
        raise _short(name, data.size, expected)
    identity = hashlib.sha256(data.tobytes()).hexdigest()
    return Packed(shape, signed, lambda: data, name, digest("onnx4", identity))
