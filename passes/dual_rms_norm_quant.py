"""The two norms of multi-head latent attention as one, with one or both quantised.

Fuses   q, kv = dual_rms_norm(...),   quantize(q)   and perhaps   quantize(kv)
into    dual_rms_norm_quant(...) {quantises, scaling}

The norm that is quantised comes first: where that is only the second, the two change places.  Rows
are quantised as they are computed, in f32: they are not rounded to the dtype of q or kv before.
Of two norms of which one is also read as it is, the other is quantised here.

Leaves it alone when
  output-not-quantised  the graph is quantised, but nothing quantises either norm as it is
  granularity           all rows share one scale that is not given
  scale                 the scale is given, which the operation does not take
  scalings              the norms are quantised by two scalings
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fusec.ir import Attr, Graph, Node
from fusec.ir.types import bool_attr, float_attr, ints_attr
from fusec.passes.dual_rms_norm import known_ranks, ranks_of
from fusec.passes.quantised_result import (
    alike,
    in_shape_of,
    is_quantised,
    keeps_rows,
    may_be_quantised,
    not_quantised,
    quantisers,
    quantisers_among,
    readings,
    scale_of_rows,
)
from fusec.rewrite import DecisionLog, FusionPass, Guard, Match, Rejection
from fusec.rewrite.driver import Builder
from fusec.target import Target


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the norms.

    Attributes:
        position: 0 or 1.
        views: between the norm and its readers.
        quantisers: nodes that quantise it.
        whole: whether they are all its readers, and alike.
    """

    position: int
    views: tuple[Node, ...]
    quantisers: tuple[Node, ...]
    whole: bool


def _side(graph: Graph, dual: Node, position: int) -> _Side:
    value = dual.outputs[position]
    views, found = readings(graph, value)
    narrow = quantisers_among(found)
    whole = len(narrow) == len(found) and all(
        alike(narrow[0], each) and keeps_rows(graph, value, each) for each in narrow
    )
    return _Side(position, tuple(views), tuple(narrow), bool(narrow) and whole)


def _quantised(match: Match, target: Target) -> Rejection | None:
    if quantisers(match):
        return None
    return not_quantised(match.graph, match.root.outputs, match.root.name)


def _scale(match: Match, target: Target) -> Rejection | None:
    given = next((n for n in quantisers(match) if bool_attr(n.attrs, "has_scale")), None)
    if given is None:
        return None
    reason = f"`%{given.name}` has the scale `%{given.inputs[1]}`, which is no operand of two norms"
    return Rejection("scale", reason, given.name)


def _scalings(match: Match, target: Target) -> Rejection | None:
    first, *others = quantisers(match)
    other = next((node for node in others if not alike(first, node)), None)
    if other is None:
        return None
    reason = f"`%{first.name}` and `%{other.name}` quantise by two scalings"
    return Rejection("scalings", reason, other.name)


class DualRmsNormQuant(FusionPass):
    """Begins at the two norms."""

    name: ClassVar[str] = "dual_rms_norm_quant"
    fusion: ClassVar[str | None] = "dual_rms_norm_quant"
    after: ClassVar[tuple[str, ...]] = ("quantise", "dual_rms_norm")
    guards: ClassVar[tuple[Guard, ...]] = (_quantised, scale_of_rows, _scale, _scalings)

    def anchors(self) -> frozenset[str]:
        """Both norms as one."""
        return frozenset(("dual_rms_norm",))

    def run(self, graph: Graph, target: Target, log: DecisionLog) -> int:
        """Rewrite and record; a graph in which nothing is quantised has no sites."""
        return super().run(graph, target, log) if is_quantised(graph) else 0

    def find(self, graph: Graph, node: Node) -> Match | None:
        """The norms and what quantises them; sides that others read, too, only if both are."""
        sides = [_side(graph, node, position) for position in (0, 1)]
        taken = [side for side in sides if side.whole]
        taken = taken or [side for side in sides if side.quantisers]
        if not taken and not may_be_quantised(graph, node.outputs):
            return None
        inner = [each for side in taken for each in (*side.views, *side.quantisers)]
        facts = ranks_of(graph, (node.inputs[0], node.inputs[2]))
        facts["sides"] = tuple(side.position for side in taken)
        return Match(graph, node, inner=(node, *inner), facts=facts)

    def outputs(self, match: Match) -> tuple[str, ...]:
        """What is quantised, and a norm that is not."""
        sides = ints_attr(match.facts, "sides")
        plain = (value for at, value in enumerate(match.root.outputs) if at not in sides)
        return (*(value for node in quantisers(match) for value in node.outputs), *plain)

    def site(self, match: Match) -> str:
        """The attention module, which owns the module of the first norm."""
        return match.root.origin.path.rpartition(".")[0] or match.root.name

    def details(self, match: Match, target: Target) -> Mapping[str, str | int | float]:
        """Which norm is quantised, and the sizes and eps of both."""
        sides = ints_attr(match.facts, "sides")
        return {
            "quantises": "both" if len(sides) == 2 else ("q", "kv")[sides[0]],
            **known_ranks(match.facts),
            "eps1": float_attr(match.root.attrs, "eps1"),
            "eps2": float_attr(match.root.attrs, "eps2"),
        }

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the node, what is quantised first."""
        graph, root, taken = match.graph, match.root, quantisers(match)
        sides = ints_attr(match.facts, "sides")
        order = (*sides, *(at for at in (0, 1) if at not in sides))
        scaling = {name: value for name, value in taken[0].attrs.items() if name != "has_scale"}
        attrs: dict[str, Attr] = {
            **scaling,
            **{f"eps{at + 1}": root.attrs[f"eps{side + 1}"] for at, side in enumerate(order)},
            "weight_offset": root.attrs["weight_offset"],
            "quantises": "both" if len(sides) == 2 else "first",
        }
        operands = [value for side in order for value in root.inputs[2 * side : 2 * side + 2]]
        made = build.node("dual_rms_norm_quant", operands, attrs)
        given = list(made.outputs)
        stands_for: dict[str, str] = {}
        for side in sides:
            narrow = (given.pop(0), given.pop(0))
            _, found = readings(graph, root.outputs[side])
            for each in quantisers_among(found):
                for old, new in zip(each.outputs, narrow, strict=True):
                    stands_for[old] = in_shape_of(graph, old, new, build)
        stands_for.update(
            zip((root.outputs[side] for side in order[len(sides) :]), given, strict=True)
        )
        build.added.append(made.name)
        return stands_for
