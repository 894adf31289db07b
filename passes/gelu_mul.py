"""GeGLU's activation: GELU of one projection times another.

Fuses   gelu(gate) * up   into   gelu_mul(gate, up) {approximate}

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


class GeluMul(GatedProduct):
    """One node for an activation and the product with its gate."""

    name: ClassVar[str] = "gelu_mul"
    fusion: ClassVar[str | None] = "gelu_mul"
    patterns: ClassVar[tuple[Op, ...]] = (gated("gelu"),)
