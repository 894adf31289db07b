"""Products that are given as they were summed, without rounding to a 16-bit type in between.

A matrix product sums in f32.  Where its only readers widen the result, choose by it or turn it into
probabilities, rounding it first gains nothing and loses what a router needs most: two experts whose
scores differ in the ninth bit become a tie.

Fuses
    cast(linear(x, w), f32)                          into  linear(x, w) {dtype = "f32"}
    topk, softmax, sigmoid of linear(x, w)           into  the same of linear(x, w) {dtype = "f32"},
                                                     rounded after

    linear(cast(x, f32), cast(w, f32)), bf16 or f16  into  linear(x, w) {dtype = "f32"}

A product that has any other reader, or is returned, stays rounded: the match does not hold.  One of
widened operands is exact as it is, for products of two narrow numbers are exact in f32; it reads
them narrow, which moves half the bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fusec.ir import Graph, Node
from fusec.passes.facts import before_widening
from fusec.rewrite import FusionPass, Match
from fusec.rewrite.driver import Builder
from fusec.target import Target

_NARROW = ("bf16", "f16")
_READERS = frozenset(("cast", "topk", "softmax", "sigmoid"))


class WideLinear(FusionPass):
    """Give a product unrounded to readers that choose by it or widen it."""

    name: ClassVar[str] = "wide_linear"
    after: ClassVar[tuple[str, ...]] = ("linear", "merge_qkv", "merge_gate_up")

    def anchors(self) -> frozenset[str]:
        """Products with a weight."""
        return frozenset(("linear",))

    def find(self, graph: Graph, node: Node) -> Match | None:
        """A product of widened operands, or one all of whose readers gain by a wide one."""
        if _is_of_widened(graph, node):
            return Match(graph, node, inner=(node,))
        if graph.type(node.output).dtype not in _NARROW or node.output in graph.outputs:
            return None
        readers = graph.users(node.output)
        if not readers or not all(_gains(graph, reader) for reader in readers):
            return None
        return Match(graph, node, inner=(node, *readers))

    def outputs(self, match: Match) -> tuple[str, ...]:
        """What the readers give, or a product of widened operands."""
        if len(match.inner) == 1:
            return match.root.outputs
        return tuple(value for reader in match.inner[1:] for value in reader.outputs)

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Widen the product, and round what is read of it."""
        graph, linear = match.graph, match.root
        inputs = [before_widening(graph, value) for value in linear.inputs]
        wide = build.value("linear", inputs, {**linear.attrs, "dtype": "f32"})
        if len(match.inner) == 1:
            return {linear.output: wide}
        stands_for: dict[str, str] = {}
        for reader in match.inner[1:]:
            if reader.op == "cast":
                stands_for[reader.output] = wide
                continue
            made = build.node(reader.op, [wide], reader.attrs)
            for old, new in zip(reader.outputs, made.outputs, strict=True):
                dtype = graph.type(old).dtype
                if graph.type(new).dtype != dtype:
                    new = build.value("cast", [new], {"dtype": dtype})
                stands_for[old] = new
        return stands_for


def _is_of_widened(graph: Graph, node: Node) -> bool:
    """Whether a product in f32 has operands that are all widened from one narrow type."""
    narrow = {graph.type(before_widening(graph, value)).dtype for value in node.inputs}
    is_f32 = all(graph.type(value).dtype == "f32" for value in node.inputs)
    return is_f32 and len(narrow) == 1 and narrow <= set(_NARROW)


def _gains(graph: Graph, reader: Node) -> bool:
    if reader.op == "cast":
        return graph.type(reader.output).dtype == "f32"
    return reader.op in _READERS
