"""SwiGLU's activation: SiLU of one projection times another.

Fuses   silu(gate) * up   into   silu_mul(gate, up)

A cast to f32 before and back after goes: the operation computes in f32 and rounds once.

Leaves it alone when
  length  on a GPU, the elements of a row are counted only when it runs
  shape   gate and up differ in shape, so that one is a scale and not a projection

A product with stored numbers, or of single numbers, has no gate and is no site.
"""

from __future__ import annotations

from typing import ClassVar

from fusec.passes.gated_product import GatedProduct, gated
from fusec.rewrite import Op


class SiluMul(GatedProduct):
    """One node for an activation and the product with its gate."""

    name: ClassVar[str] = "silu_mul"
    fusion: ClassVar[str | None] = "silu_mul"
    patterns: ClassVar[tuple[Op, ...]] = (gated("silu"),)
