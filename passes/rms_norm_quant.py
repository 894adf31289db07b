"""RMSNorm that quantises its result, as before a projection in fp8.

Fuses   quantize(rms_norm(x, w))   into   rms_norm_quant(x, w) {scaling, with_plain}

The rows are quantised as they are computed, in f32: they are not rounded to the dtype of x before.
Other readers, such as a router, read the rows as a further result.

Leaves it alone when
  output-not-quantised  the graph is quantised, but nothing quantises this result as it is
  granularity           all rows share one scale that is not given
  shape                 several rows are quantised side by side as one
"""

from __future__ import annotations

from typing import ClassVar

from fusec.passes.quantised_result import QuantisedResult


class RmsNormQuant(QuantisedResult):
    """One node for a norm and what quantises it."""

    name: ClassVar[str] = "rms_norm_quant"
    fusion: ClassVar[str | None] = "rms_norm_quant"
    base: ClassVar[str] = "rms_norm"
    after: ClassVar[tuple[str, ...]] = ("quantise", "dual_rms_norm_quant", "add_rms_norm_quant")
    instead_of: ClassVar[tuple[str, ...]] = ("dual_rms_norm", "add_rms_norm")
