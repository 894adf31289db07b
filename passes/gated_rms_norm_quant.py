"""RMSNorm with a gate that quantises its result, as at the end of a linear attention layer.

Fuses   quantize(heads side by side of gated_rms_norm(x, w, gate))
into    gated_rms_norm_quant(x, w, gate) {activation, norm_before_gate, scaling, shape, with_plain}

The norm goes over the rows of one head each; the heads of a token side by side are one row that is
quantised, in `shape`.  Rows are quantised as they are computed, in f32: they are not rounded to the
dtype of x before.  Gates by SiLU and by sigmoid fuse alike.  Sizes are read from shapes alone.

Leaves it alone when
  output-not-quantised  the graph is quantised, but nothing quantises this result as it is
  granularity           all rows share one scale that is not given
  gdn.shape             rows that are quantised are no whole heads, or no shape tells how many heads
                        ranks are to divide
  gdn.heads-tp          ranks do not get equally many whole heads
  gdn.head-dim          the size of a head is not a power of two up to 256
  group                 groups that share a scale neither divide heads nor are whole heads
  row                   the heads of a token share a scale, and are more than 16384 elements
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from fusec import symbolic
from fusec.ir import Graph, Node
from fusec.ir.types import dims_attr, int_attr
from fusec.passes.gated_heads import head_details, head_facts, heads_divide
from fusec.passes.quantised_result import (
    QuantisedResult,
    is_quantised,
    quantisers,
    result_quantised,
    scale_of_rows,
)
from fusec.rewrite import DecisionLog, Guard, Match, Rejection
from fusec.target import Target

_LARGEST_HEAD = 256
"""Elements; the kernels that quantise hold whole heads in registers."""

_LONGEST_ROW = 16384
"""Elements; the kernels that quantise hold all that shares a scale in registers."""


def _whole_heads(match: Match, target: Target) -> Rejection | None:
    size = match.facts["head_dim"]
    if not isinstance(size, int):
        reason = f"the size of a head, `{size}`, is known only when it runs"
        return Rejection("gdn.shape", reason, match.root.name)
    if "shape" not in match.facts:
        return None
    row = dims_attr(match.facts, "shape")[-1]
    if symbolic.modulo(row, size) == 0:
        return None
    reason = f"rows of {row} elements are quantised, which are no whole heads of {size}"
    return Rejection("gdn.shape", reason, match.root.name)


def _head_dim(match: Match, target: Target) -> Rejection | None:
    size = int_attr(match.facts, "head_dim")
    if size <= _LARGEST_HEAD and size & (size - 1) == 0:
        return None
    reason = f"a head has {size} elements, which is not a power of two up to {_LARGEST_HEAD}"
    return Rejection("gdn.head-dim", reason, match.root.name)


def _group(match: Match, target: Target) -> Rejection | None:
    size, narrow = int_attr(match.facts, "head_dim"), quantisers(match)[0]
    group = int_attr(narrow.attrs, "group")
    if group == 0 or group % size == 0 or size % group == 0:
        return None
    reason = f"groups of {group} elements neither divide heads of {size} nor are whole heads"
    return Rejection("group", reason, narrow.name)


def _row(match: Match, target: Target) -> Rejection | None:
    narrow = quantisers(match)[0]
    length = match.graph.type(narrow.inputs[0]).shape[-1]
    if narrow.attrs["granularity"] != "token" or not isinstance(length, int):
        return None
    if length <= _LONGEST_ROW:
        return None
    reason = f"{length} elements share a scale, more than {_LONGEST_ROW} that are held at once"
    return Rejection("row", reason, narrow.name)


class GatedRmsNormQuant(QuantisedResult):
    """One node for the gated norm and what quantises the heads of a token."""

    name: ClassVar[str] = "gated_rms_norm_quant"
    fusion: ClassVar[str | None] = "gated_rms_norm_quant"
    base: ClassVar[str] = "gated_rms_norm"
    after: ClassVar[tuple[str, ...]] = ("quantise", "gated_rms_norm")
    guards: ClassVar[tuple[Guard, ...]] = (
        result_quantised,
        scale_of_rows,
        _whole_heads,
        heads_divide,
        _head_dim,
        _group,
        _row,
    )

    def run(self, graph: Graph, target: Target, log: DecisionLog) -> int:
        """Rewrite and record; what was refused for its heads as a norm is refused here, too."""
        if is_quantised(graph):
            for row in log.refused():
                if row.fusion == self.base and row.code in ("gdn.heads-tp", "gdn.shape"):
                    log.add(replace(row, fusion=self.name))
        return super().run(graph, target, log)

    def find(self, graph: Graph, node: Node) -> Match | None:
        """The norm, what quantises it, and its heads."""
        match = super().find(graph, node)
        if match is None:
            return None
        x, _, gate = node.inputs
        heads = head_facts(graph, (x, gate), node.output, self.settings)
        return replace(match, facts={**match.facts, **heads})

    def details(self, match: Match, target: Target) -> Mapping[str, str | int | float]:
        """The heads, the gate, which comes first, and how many elements share a scale."""
        gate = {name: match.root.attrs[name] for name in ("activation", "norm_before_gate")}
        group = int_attr(quantisers(match)[0].attrs, "group")
        return {
            **super().details(match, target),
            **head_details(match.facts),
            **{name: value for name, value in gate.items() if isinstance(value, str | int)},
            **({"group": group} if group else {}),
        }
