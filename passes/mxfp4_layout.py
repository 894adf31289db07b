"""Weights of 4-bit floats as kernels read them: gate and up alternate, sizes are padded at the end.

Sizes in memory are multiples of 256: scaled matrix instructions take 32 columns of 32 elements in
one go, and AMD's kernels shuffle scales in groups of 8 (aiter, `shuffle_scale`).  Because gate and
up alternate, both are padded by padding the end.  Codes are padded with zeros, which are the number
0, and scales with the byte 0x7F, which is 1.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fusec.ir.weights import Bits, Weight

ALIGNMENT = 256
"""What the sizes of a weight are multiples of in memory."""

ONE = 0x7F
"""The e8m0 byte of the scale 1."""


def aligned(*sizes: int) -> bool:
    """Whether `sizes` need no padding."""
    return not any(size % ALIGNMENT for size in sizes)


def up_to(size: int, step: int) -> int:
    """The next multiple of `step`."""
    return size + -size % step


def alternating(weight: Weight) -> Weight:
    """`weight` [E, 2I, ...], gate rows before up rows, in the order gate 0, up 0, gate 1, ..."""

    def change(bits: Bits) -> Bits:
        experts, rows, *rest = bits.shape
        halves = bits.reshape(experts, 2, rows // 2, *rest)
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(bits.shape)

    return weight.derive(f"{weight.name}.interleaved", weight.type, "interleaved", change)


def padded(weight: Weight, sizes: tuple[int, ...], fill: int = 0) -> Weight:
    """`weight` with `sizes` in memory; the logical ones stay.

    Args:
        weight: not padded.
        sizes: none smaller than the logical one.
        fill: what a padded element has in memory.
    """
    if sizes == weight.shape:
        return weight
    kind = replace(weight.type, padded=sizes)
    logical = tuple(slice(size) for size in weight.shape)

    def change(bits: Bits) -> Bits:
        wide = np.full(sizes, fill, dtype=bits.dtype)
        wide[logical] = bits
        return wide

    how = f"padded to {'x'.join(map(str, sizes))} with {fill:#04x}"
    return weight.derive(f"{weight.name}.padded", kind, how, change)


def padded_codes(
    codes: Weight, scale: Weight, row_step: int, column_step: int
) -> tuple[Weight, Weight]:
    """Codes [..., N, K/2] and scales [..., N, K/32], padded.

    Args:
        codes: pairs of 4-bit floats.
        scale: e8m0.
        row_step: what N is a multiple of in memory.
        column_step: what K is a multiple of in memory, in elements.
    """
    *outer, rows, pairs = codes.shape
    rows, columns = up_to(rows, row_step), up_to(2 * pairs, column_step)
    groups = columns // 32 if column_step > 1 else scale.shape[-1]
    return (
        padded(codes, (*outer, rows, columns // 2)),
        padded(scale, (*outer, rows, groups), ONE),
    )
