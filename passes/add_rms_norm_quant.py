"""The join of a residual stream and the norm that reads it, with the norm quantised.

Fuses   y, s = add_rms_norm(x, residual, w),                  quantize(y)
        s = x + residual,   y = rms_norm(cast(s), w),         quantize(y)
into    codes, scale, s = add_rms_norm_quant(x, residual, w) {scaling, with_plain}

The second, where the norm reads the sum widened, only if nothing else reads y.  The sum stays a
result of its own and keeps its dtype.  The rows are quantised as they are computed, in f32: they
are not rounded to the dtype of x before.  Other readers of the norm, such as a router, read it as a
further result.

Leaves it alone when
  output-not-quantised  the graph is quantised, but nothing quantises this result as it is
  granularity           all rows share one scale that is not given
  shape                 several rows are quantised side by side as one
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from fusec.ir import Graph, Node
from fusec.passes.facts import before_widening, only_reader
from fusec.passes.quantised_result import QuantisedResult, quantisers
from fusec.rewrite import Match


class AddRmsNormQuant(QuantisedResult):
    """One node for the sum, its norm and what quantises that."""

    name: ClassVar[str] = "add_rms_norm_quant"
    fusion: ClassVar[str | None] = "add_rms_norm_quant"
    base: ClassVar[str] = "add_rms_norm"
    after: ClassVar[tuple[str, ...]] = ("quantise", "add_rms_norm", "dual_rms_norm_quant")

    def anchors(self) -> frozenset[str]:
        """The operation, and a norm that reads a sum widened."""
        return frozenset((self.base, "rms_norm"))

    def find(self, graph: Graph, node: Node) -> Match | None:
        """As every result that is quantised; with a norm alone, the sum belongs to the match."""
        match = super().find(graph, node)
        if node.op == self.base or match is None:
            return match
        widened = graph.producer(node.inputs[0])
        total = graph.producer(before_widening(graph, node.inputs[0]))
        if widened is None or total is None or total.op != "add" or "readers" in match.facts:
            return None
        alike = {graph.type(value) for value in (*total.inputs, total.output)}
        alone = widened is total or only_reader(graph, widened.output) is node
        if len(alike) > 1 or not alone or not quantisers(match) or len(node.inputs) < 2:
            return None
        between = () if widened is total else (widened,)
        return replace(match, inner=(*match.inner, *between, total), nodes={"sum": total})

    def further(self, match: Match) -> tuple[str, ...]:
        """The sum."""
        return match.nodes["sum"].outputs if match.nodes else super().further(match)

    def operands(self, match: Match) -> tuple[str, ...]:
        """x, the residual and the weight."""
        if not match.nodes:
            return super().operands(match)
        return (*match.nodes["sum"].inputs, match.root.inputs[1])
