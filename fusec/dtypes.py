"""Element types, by the names used in the IR, in artifacts and on the command line.

Standard library and numpy only: the runtime uses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["float", "int", "uint", "bool", "packed"]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    Attributes:
        name: fusec's name.
        bits: size of one element in bits.
        kind: `packed` holds several logical elements in one byte.
        numpy: the numpy dtype that stores it; raw bits where numpy has no such type.
        safetensors: the name in a safetensors header.
    """

    name: str
    bits: int
    kind: Kind
    numpy: np.dtype[np.generic]
    safetensors: str

    @property
    def itemsize(self) -> int:
        """Bytes an element takes in memory."""
        return self.bits // 8

    @property
    def is_float(self) -> bool:
        """Whether arithmetic on it is floating point."""
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        """Whether it is a signed or unsigned integer; `bool` is not."""
        return self.kind in ("int", "uint")


def _dtype(name: str, bits: int, kind: Kind, storage: str, safetensors: str) -> DType:
    return DType(name, bits, kind, np.dtype(storage), safetensors)


DTYPES: dict[str, DType] = {
    entry.name: entry
    for entry in (
        _dtype("f64", 64, "float", "<f8", "F64"),
        _dtype("f32", 32, "float", "<f4", "F32"),
        _dtype("f16", 16, "float", "<f2", "F16"),
        _dtype("bf16", 16, "float", "<u2", "BF16"),
        _dtype("f8e4m3fn", 8, "float", "u1", "F8_E4M3"),
        _dtype("f8e4m3fnuz", 8, "float", "u1", "F8_E4M3FNUZ"),
        _dtype("f8e5m2", 8, "float", "u1", "F8_E5M2"),
        _dtype("f4e2m1x2", 8, "packed", "u1", "F4"),
        _dtype("e8m0", 8, "float", "u1", "F8_E8M0"),
        _dtype("i64", 64, "int", "<i8", "I64"),
        _dtype("i32", 32, "int", "<i4", "I32"),
        _dtype("i16", 16, "int", "<i2", "I16"),
        _dtype("i8", 8, "int", "i1", "I8"),
        _dtype("u8", 8, "uint", "u1", "U8"),
        _dtype("bool", 8, "bool", "?", "BOOL"),
    )
}
"""Every element type by name."""

BY_SAFETENSORS: dict[str, DType] = {entry.safetensors: entry for entry in DTYPES.values()}
"""Every element type by its name in a safetensors header."""


def bf16_to_f32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Widen bfloat16 bits, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round to bfloat16 bits, to nearest even; NaN stays NaN."""
    bits = np.asarray(values, dtype=np.float32, order="C").view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    quiet = (bits >> 16) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)
