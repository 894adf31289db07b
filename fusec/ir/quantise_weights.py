"""Weights in fewer bits, made from plain ones when the artifact is written.

Scales come from the largest magnitude of each block, so that it becomes the largest code:
largest/448 for e4m3fn and largest/224 for e4m3fnuz (`formats.QUANT_MAX`), 1 for a block of zeros;
for the MX formats the power of two that `formats.Scaling.scale` gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fusec.dtypes import bf16_to_f32
from fusec.formats import (
    MX_GROUP,
    Floats,
    Scaling,
    encode,
    encode_e8m0,
    fp8_scaling,
    mx_scaling,
    pack_e2m1,
)
from fusec.ir.types import TensorType
from fusec.ir.weights import Bits, Quantised, Weight

WeightFormat: TypeAlias = Literal["fp8-tensor", "fp8-token", "fp8-block", "mxfp4", "mxfp8"]

FP8_BLOCK = (128, 128)
"""Rows and columns that share a scale in `fp8-block`, as in the checkpoints of DeepSeek-V3."""

_MX = {"mxfp4": mx_scaling("f4e2m1x2", "even"), "mxfp8": mx_scaling("f8e4m3fn", "up")}
"""With 3 bits of mantissa a range that is half as fine costs less than clipping the largest."""

_SLAB = 64
"""Rows that a thread widens at a time, which bounds the memory."""


@dataclass(frozen=True, slots=True)
class _Form:
    """How the matrices [N, K] of a weight are brought into fewer bits.

    Attributes:
        dtype: of the plain elements.
        scaling: the dtypes of codes and scales, and how a scale is rounded.
        block: rows and columns that share a scale.
        turned: whether the plain matrices are [K, N].
    """

    dtype: str
    scaling: Scaling
    block: tuple[int, int]
    turned: bool

    def scales(self, plain: Bits) -> Bits:
        """The scales [..., ceil(N/rows), ceil(K/columns)] as they are stored."""
        found = np.stack([self._scale(matrix) for matrix in self._matrices(plain)])
        found = found.reshape(*plain.shape[:-2], *found.shape[-2:])
        if self.scaling.scale_dtype == "e8m0":
            return encode_e8m0(found)
        return found.astype(np.float32)

    def codes(self, plain: Bits) -> Bits:
        """The codes [..., N, K], or [..., N, K/2] of pairs."""
        found = np.stack([self._codes(matrix) for matrix in self._matrices(plain)])
        return found.reshape(*plain.shape[:-2], *found.shape[-2:])

    def _matrices(self, plain: Bits) -> Iterator[Bits]:
        for matrix in plain.reshape(-1, *plain.shape[-2:]):
            yield matrix.T if self.turned else matrix

    def _by_slab(self, matrix: Bits, work: Callable[[int, Floats], Bits]) -> Bits:
        """What `work` makes of some rows at a time, from a row on, one below another."""

        def one(start: int) -> Bits:
            rows: NDArray[Any] = matrix[start : start + _SLAB]
            wide = bf16_to_f32(rows) if self.dtype == "bf16" else rows
            return work(start, wide.astype(np.float64))

        with ThreadPoolExecutor() as pool:
            return np.concatenate(list(pool.map(one, range(0, len(matrix), _SLAB))))

    def _scale(self, matrix: Bits) -> Floats:
        row_starts, column_starts = (
            np.arange(0, size, step) for size, step in zip(matrix.shape, self.block, strict=True)
        )

        def largest(_: int, rows: Floats) -> Bits:
            return np.maximum.reduceat(np.abs(rows), column_starts, axis=1)

        top = np.maximum.reduceat(self._by_slab(matrix, largest), row_starts, axis=0)
        if self.scaling.scale_dtype == "e8m0":
            return self.scaling.scale(top)
        scale = np.where(top > 0, top / self.scaling.maximum, 1.0)
        return scale.astype(np.float32).astype(np.float64)

    def _codes(self, matrix: Bits) -> Bits:
        scale, top = self._scale(matrix), self.scaling.maximum
        per_row, per_column = self.block
        by_column = np.arange(matrix.shape[1]) // per_column

        def codes(start: int, rows: Floats) -> Bits:
            by_row = np.arange(start, start + len(rows)) // per_row
            scaled = np.clip(rows / scale[by_row][:, by_column], -top, top)
            return pack_e2m1(scaled) if self.scaling.packed else encode(scaled, self.scaling.dtype)

        return self._by_slab(matrix, codes)


def quantised_weight(
    weight: Weight, format: WeightFormat, fp8: str = "f8e4m3fn", *, turned: bool = False
) -> Quantised:
    """Codes and scales for the plain `weight`; nothing is computed before they are loaded.

    Args:
        weight: [N, K] or [E, N, K] of f32, bf16 or f16; with `turned` its last sizes are [K, N].
        format: `fp8-tensor` has one scale a matrix, `fp8-token` one a row, `fp8-block` one for
            128x128 elements (fewer at the edges), `mxfp4` and `mxfp8` one for 32 elements of a
            row.  K is even for `mxfp4`.
        fp8: the dtype of the codes of the `fp8` formats.
        turned: see `weight`.
    """
    *outer, rows, columns = weight.shape
    if turned:
        rows, columns = columns, rows
    block = {
        "fp8-tensor": (rows, columns),
        "fp8-token": (1, columns),
        "fp8-block": FP8_BLOCK,
    }.get(format, (1, MX_GROUP))
    scaling = _MX.get(format) or fp8_scaling(fp8, "tensor")
    form = _Form(weight.type.dtype, scaling, block, turned)
    codes = (*outer, rows, columns // 2 if scaling.packed else columns)
    blocks = (*outer, -(-rows // block[0]), -(-columns // block[1]))
    how = f"{format} {scaling.dtype}{' of the transpose' if turned else ''}"
    return Quantised(
        weight.derive(
            f"{weight.name}.codes", TensorType(scaling.dtype, codes), f"{how} codes", form.codes
        ),
        weight.derive(
            f"{weight.name}.scale",
            TensorType(scaling.scale_dtype, blocks),
            f"{how} scales",
            form.scales,
        ),
        block,
        turned,
    )
