"""A product that gives gate and up, and the gated activation of the two, on a CPU.

Fuses   silu_mul, gelu_mul or swiglu_oai of the halves or alternate columns of linear(x, w [, b])
into    linear_glu(x, w [, b]) {activation, alpha, limit, gate_up_layout, has_bias}

The kernel has the sums of gate and up in registers: it joins them in f32 and rounds once, and the
product, which is twice as wide as the result, is never written.  That the activation is gated is
said by `silu_mul`, `gelu_mul` or `swiglu_oai`, whose rows stay.  For a GPU, whose kernels have no
such epilogue, nothing is asked.

Leaves it alone when
  dtype   the operands are of a dtype that kernels for products do not take
  halves  gate and up are other parts of the product than its halves or its alternate columns
  weight  the weight or the bias is computed at run time, and cannot be put in order ahead of it
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fusec.ir import Attr, Graph, Node
from fusec.passes.facts import gate_up_layout, gelu_name
from fusec.passes.linear_epilogue import DTYPES
from fusec.passes.merge_gate_up import GATED
from fusec.rewrite import DecisionLog, FusionPass, Guard, Match, Rejection
from fusec.rewrite.driver import Builder
from fusec.target import Target


def _dtype(match: Match, target: Target) -> Rejection | None:
    kind = match.graph.type(match.root.output)
    if kind.dtype in DTYPES:
        return None
    return Rejection("dtype", f"the product is of {kind.dtype}", match.nodes["linear"].name)


def _halves(match: Match, target: Target) -> Rejection | None:
    gate, up = match.nodes["gate"], match.nodes["up"]
    if gate_up_layout(match.graph, gate, up) is not None:
        return None
    reason = f"`%{gate.name}` and `%{up.name}` are not its halves or its alternate columns"
    return Rejection("halves", reason, gate.name)


def _weight(match: Match, target: Target) -> Rejection | None:
    for value in match.nodes["linear"].inputs[1:]:
        if value not in match.graph.parameters:
            return Rejection("weight", f"`%{value}` is computed, not a weight", value)
    return None


class LinearGlu(FusionPass):
    """Begins at a gated activation, and looks for the one product that both operands are of."""

    name: ClassVar[str] = "linear_glu"
    fusion: ClassVar[str | None] = "linear_glu"
    after: ClassVar[tuple[str, ...]] = (
        "merge_gate_up",
        "wide_linear",
        "quantise",
        "silu_mul_quant",
        "gelu_mul_quant",
        "swiglu_oai_quant",
    )
    guards: ClassVar[tuple[Guard, ...]] = (_dtype, _halves, _weight)
    beside: ClassVar[tuple[str, ...]] = ("quantise", "merge_gate_up", *GATED)

    def run(self, graph: Graph, target: Target, log: DecisionLog) -> int:
        """Change nothing for a GPU."""
        return 0 if target.is_gpu else super().run(graph, target, log)

    def anchors(self) -> frozenset[str]:
        """The activations that take a gate."""
        return frozenset(GATED)

    def find(self, graph: Graph, node: Node) -> Match | None:
        """The product of which both operands of `node` are slices."""
        gate, up = (graph.producer(value) for value in node.inputs)
        if gate is None or up is None or gate is up or (gate.op, up.op) != ("slice", "slice"):
            return None
        linear = graph.producer(gate.inputs[0])
        if linear is None or linear.op != "linear" or up.inputs != gate.inputs:
            return None
        nodes = {"linear": linear, "gate": gate, "up": up}
        return Match(graph, node, nodes=nodes, inner=(linear, gate, up, node))

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the node."""
        linear, root = match.nodes["linear"], match.root
        attrs: dict[str, Attr] = {
            **linear.attrs,
            "activation": _activation(root),
            "alpha": root.attrs.get("alpha"),
            "limit": root.attrs.get("limit"),
            "gate_up_layout": gate_up_layout(match.graph, match.nodes["gate"], match.nodes["up"]),
            "has_bias": len(linear.inputs) == 3,
        }
        return {root.output: build.value("linear_glu", linear.inputs, attrs)}


def _activation(root: Node) -> str:
    """The activation of the gate, by the name that experts have it under as well."""
    if root.op == "gelu_mul":
        return gelu_name(root)
    return "silu" if root.op == "silu_mul" else root.op
