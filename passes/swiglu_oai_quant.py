"""gpt-oss's activation that quantises its result, as before a projection down in fp8.

Fuses   quantize(swiglu_oai(gate, up))   into   swiglu_oai_quant(gate, up) {scaling, with_plain}

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


class SwigluOaiQuant(QuantisedResult):
    """One node for the activation and what quantises it."""

    name: ClassVar[str] = "swiglu_oai_quant"
    fusion: ClassVar[str | None] = "swiglu_oai_quant"
    base: ClassVar[str] = "swiglu_oai"
    after: ClassVar[tuple[str, ...]] = ("quantise", "swiglu_oai")
