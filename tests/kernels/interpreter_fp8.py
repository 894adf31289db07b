"""Makes Triton's interpreter round to 8-bit floats as GPUs do: to nearest, ties to even.

The interpreter adds the bit that is cut off, without regard to what lies below it, and lets a
carry out of the mantissa be lost.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from triton.runtime import interpreter

from fusec.formats import decode, encode

FORMATS = {"fp8e4nv": "f8e4m3fn", "fp8e4b8": "f8e4m3fnuz", "fp8e5": "f8e5m2"}
"""fusec's names of Triton's 8-bit floats."""


def repair() -> None:
    """Replace the interpreter's conversions between f32 and 8-bit floats."""
    if getattr(interpreter._convert_float, "repaired", False):
        return
    original = interpreter._convert_float

    def convert(values: Any, source: Any, destination: Any, rounding: Any) -> Any:
        to_narrow, from_narrow = FORMATS.get(str(destination)), FORMATS.get(str(source))
        if to_narrow is not None and str(source) == "fp32":
            return encode(values.astype(np.float64), to_narrow)
        if from_narrow is not None and str(destination) == "fp32":
            return decode(values, from_narrow).astype(np.float32).view(np.uint32)
        return original(values, source, destination, rounding)

    convert.repaired = True  # type: ignore[attr-defined]
    interpreter._convert_float = convert
