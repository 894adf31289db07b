"""Mends what Triton's interpreter computes otherwise than a GPU does.

* It rounds to 8-bit floats by the bit that is cut off, without regard to what lies below it, and
  lets a carry out of the mantissa be lost.
* It multiplies bf16 as if their bits were integers.
* That of Triton 3.6 counts loops by arrays of one element, which numpy 2.5 takes for no integer.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from fusec.dtypes import bf16_to_f32
from fusec.formats import decode, encode

FORMATS = {"fp8e4nv": "f8e4m3fn", "fp8e4b8": "f8e4m3fnuz", "fp8e5": "f8e5m2"}
"""fusec's names of Triton's 8-bit floats."""


@cache
def mend() -> None:
    """Mend the interpreter of this process, once."""
    interpreter._convert_float = _convert_by(interpreter._convert_float)
    InterpreterBuilder.create_dot = _dot_by(InterpreterBuilder.create_dot)
    interpreter._patch_lang_tensor = _patch_by(interpreter._patch_lang_tensor)


def _convert_by(original: Any) -> Any:
    def convert(values: Any, source: Any, destination: Any, rounding: Any) -> Any:
        to_narrow, from_narrow = FORMATS.get(str(destination)), FORMATS.get(str(source))
        if to_narrow is not None and str(source) == "fp32":
            return encode(values.astype(np.float64), to_narrow)
        if from_narrow is not None and str(destination) == "fp32":
            return decode(values, from_narrow).astype(np.float32).view(np.uint32)
        return original(values, source, destination, rounding)

    return convert


def _dot_by(original: Any) -> Any:
    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return original(self, _wide(a), _wide(b), *rest)

    return create_dot


def _wide(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle(bf16_to_f32(handle.data), tl.float32)


def _patch_by(original: Any) -> Any:
    def patch_tensor(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    return patch_tensor
