"""Makes Triton's interpreter compute what a GPU does.

* It cuts bits off where a GPU rounds to bf16, and rounds to 8-bit floats by the bit that is cut
  off, without regard to what lies below it; a carry out of the mantissa is lost.
* It computes with bf16 as if their bits were integers.
* It calls the result of a comparison by the type of what was compared.
* Reductions and scans by functions of a kernel go element by element, which takes minutes.
* That of Triton 3.6 counts loops by arrays of one element, which numpy 2.5 takes for no integer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, ScanOps, TensorHandle

from fusec.dtypes import bf16_to_f32, f32_to_bf16
from fusec.formats import decode, encode

FORMATS = {tl.float8e4nv: "f8e4m3fn", tl.float8e4b8: "f8e4m3fnuz", tl.float8e5: "f8e5m2"}
"""fusec's names of Triton's 8-bit floats."""


class GpuBuilder(InterpreterBuilder):  # type: ignore[misc]
    """The interpreter's operations, rounded as a GPU rounds."""

    def cast_impl(self, src: Any, dst_type: Any) -> Any:
        """`src` converted, to nearest even."""
        wanted = dst_type.scalar
        return TensorHandle(_cast(src.data, src.dtype.scalar, wanted), wanted)

    def create_fp_to_fp(self, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        """As `cast_impl`, where to nearest even is what is asked for."""
        if rounding_mode not in (None, interpreter._ir.ROUNDING_MODE.RTNE):
            return super().create_fp_to_fp(src, dst_type, rounding_mode)
        return self.cast_impl(src, dst_type)

    def binary_op(self, lhs: Any, rhs: Any, op: Any) -> Any:
        """`op`, in f32 where operands are bf16; what compares gives truth values."""
        result = super().binary_op(_wide(lhs), _wide(rhs), op)
        if result.data.dtype == np.bool_:
            return TensorHandle(result.data, tl.int1)
        return self.cast_impl(result, lhs.dtype)

    def unary_op(self, arg: Any, op: Any) -> Any:
        """`op` in f32 where the operand is bf16."""
        return self.cast_impl(super().unary_op(_wide(arg), op), arg.dtype)

    def create_dot(self, a: Any, b: Any, *rest: Any) -> Any:
        """A product of exact values, summed in the type of the sum."""
        return super().create_dot(_wide(a), _wide(b), *rest)


def _cast(values: Any, source: Any, wanted: Any) -> Any:
    if source is wanted:
        return values
    if source is tl.bfloat16:
        values = bf16_to_f32(values)
    elif source in FORMATS:
        values = decode(values, FORMATS[source]).astype(np.float32)
    if wanted is tl.bfloat16:
        return f32_to_bf16(values.astype(np.float32))
    if wanted in FORMATS:
        return encode(values.astype(np.float64), FORMATS[wanted])
    return values.astype(interpreter._get_np_dtype(wanted))


def _wide(handle: Any) -> Any:
    """`handle`, in f32 if it is of fewer bits than numpy knows."""
    kind = handle.dtype.scalar
    if kind is tl.bfloat16 or kind in FORMATS:
        return TensorHandle(_cast(handle.data, kind, tl.float32), tl.float32)
    return handle


def _reduce(self: Any, given: tuple[Any, ...]) -> list[Any]:
    """A reduction by a function of the kernel: of neighbours, then of their results, and so on."""
    kinds = [part.dtype for part in given]
    parts = [part.handle.data for part in given]
    rank, axis = parts[0].ndim, self.axis
    if axis is None:
        axis, parts = 0, [part.reshape(-1) for part in parts]
    while parts[0].shape[axis] > 1:
        even, odd = ([_along(part, axis, slice(i, None, 2)) for part in parts] for i in (0, 1))
        parts = _combined(self, kinds, even, odd)
    if self.axis is None:
        parts = [part.reshape((1,) * rank if self.keep_dims else ()) for part in parts]
    elif not self.keep_dims:
        parts = [part.squeeze(axis) for part in parts]
    return [self.to_tensor(part, kind) for part, kind in zip(parts, kinds, strict=True)]


def _scan(self: Any, given: tuple[Any, ...]) -> list[Any]:
    """A scan by a function of the kernel: each with the one before it, two before it, and so on."""
    kinds = [part.dtype for part in given]
    parts = [part.handle.data for part in given]
    axis, step = self.axis, 1
    while step < parts[0].shape[axis]:
        early, late = (
            [_along(part, axis, places) for part in parts]
            for places in (slice(None, -step), slice(step, None))
        )
        made = _combined(self, kinds, early, late)
        parts = [
            np.concatenate([_along(part, axis, slice(None, step)), rest], axis)
            for part, rest in zip(parts, made, strict=True)
        ]
        step *= 2
    return [self.to_tensor(part, kind) for part, kind in zip(parts, kinds, strict=True)]


def _combined(self: Any, kinds: list[Any], left: list[Any], right: list[Any]) -> list[Any]:
    """What the function of a reduction makes of two tensors of each part."""
    given = [
        self.to_tensor(np.ascontiguousarray(part), kind)
        for side in (left, right)
        for part, kind in zip(side, kinds, strict=True)
    ]
    made = self.combine_fn(*given)
    return [part.handle.data for part in (made if isinstance(made, tuple) else (made,))]


def _along(values: Any, axis: int, places: slice) -> Any:
    return values[(slice(None),) * axis + (places,)]


Method = Callable[..., Any]


def _widened(original: Method) -> Method:
    """A sum of bf16, of which numpy knows only the bits, is one of f32."""

    def summed(self: Any, given: Any) -> Any:
        if given.dtype is not tl.bfloat16:
            return original(self, given)
        wide = self.to_tensor(_wide(given.handle).data, tl.float32)
        total = original(self, wide)
        total = total[0] if isinstance(total, list) else total
        return self.to_tensor(f32_to_bf16(total.handle.data), tl.bfloat16)

    return summed


def _index_by(original: Method) -> Method:
    def patch_tensor(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    return patch_tensor


@cache
def mend() -> None:
    """Mend the interpreter of this process, once."""
    interpreter.interpreter_builder.__class__ = GpuBuilder
    ReduceOps.sum = _widened(ReduceOps.sum)
    ReduceOps.generic_reduce = _reduce
    ScanOps.generic_scan = _scan
    interpreter._patch_lang_tensor = _index_by(interpreter._patch_lang_tensor)
