"""SwiGLU's activation that quantises its result, as before a projection down in fp8.

Fuses   quantize(silu_mul(gate, up))   into   silu_mul_quant(gate, up) {scaling, with_plain}

The rows are quantised as they are computed, in f32: they are not rounded to the dtype of gate
before.  Other readers read the rows as a further result.

Leaves it alone when
  output-not-quantised  the graph is quantised, but nothing quantises this result as it is
  granularity           all rows share one scale that is not given
  shape                 several rows are quantised side by side as one
"""

from __future__ import annotations

from typing import ClassVar

from fusec.passes.quantised_result import QuantisedResult


class SiluMulQuant(QuantisedResult):
    """One node for the activation and what quantises it."""

    name: ClassVar[str] = "silu_mul_quant"
    fusion: ClassVar[str | None] = "silu_mul_quant"
    base: ClassVar[str] = "silu_mul"
    after: ClassVar[tuple[str, ...]] = ("quantise", "silu_mul")
