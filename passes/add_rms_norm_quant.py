"""The join of a residual stream and the norm that reads it, with the norm quantised.

Fuses   y, s = add_rms_norm(x, residual, w),   quantize(y)
into    codes, scale, s = add_rms_norm_quant(x, residual, w) {scaling, with_plain}

The sum stays a result of its own and keeps its dtype.  The rows are quantised as they are computed,
in f32: they are not rounded to the dtype of x before.  Other readers of the norm, such as a router,
read it as a further result.

Leaves it alone when
  output-not-quantised  the graph is quantised, but nothing quantises this result
  granularity           all rows share one scale that is not given
  shape                 several rows are quantised side by side as one
"""

from __future__ import annotations

from typing import ClassVar

from fusec.passes.quantised_result import QuantisedResult


class AddRmsNormQuant(QuantisedResult):
    """One node for the sum, its norm and what quantises that."""

    name: ClassVar[str] = "add_rms_norm_quant"
    fusion: ClassVar[str | None] = "add_rms_norm_quant"
    base: ClassVar[str] = "add_rms_norm"
    after: ClassVar[tuple[str, ...]] = ("quantise", "add_rms_norm", "dual_rms_norm_quant")
