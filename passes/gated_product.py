"""What the passes for gated activations share: an activation of one projection times another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fusec.ir import Graph, Node
from fusec.passes.facts import known_length
from fusec.rewrite import FusionPass, Guard, Match, Op, Rejection, Var
from fusec.rewrite.driver import Builder
from fusec.target import Target

_VIEWS = ("reshape", "transpose", "expand", "cast")


def gated(activation: str) -> Op:
    """The product of `activation(gate)` and `up`."""
    return Op("mul", (Op(activation, (Var("gate"),), name="activation"), Var("up")))


def same_shape(match: Match, target: Target) -> Rejection | None:
    """Guard: gate and up have one shape."""
    gate, up = (match.graph.type(match.values[name]) for name in ("gate", "up"))
    if gate.shape == up.shape:
        return None
    return Rejection("shape", f"gate is `{gate}`, but up is `{up}`", match.values["up"])


class GatedProduct(FusionPass):
    """One node, called as the pass is, for an activation and the product with its gate."""

    after: ClassVar[tuple[str, ...]] = ("activations", "gated_rms_norm")
    guards: ClassVar[tuple[Guard, ...]] = (same_shape, known_length)

    def find(self, graph: Graph, node: Node) -> Match | None:
        """The product at `node`; a product with stored, or of single, numbers has no gate."""
        match = super().find(graph, node)
        if match is None or graph.type(node.output).rank == 0:
            return None
        return None if _stored(graph, match.values["up"]) else match

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the product."""
        inputs = [match.values["gate"], match.values["up"]]
        attrs = match.nodes["activation"].attrs
        return {match.root.output: build.value(self.name, inputs, attrs)}


def _stored(graph: Graph, value: str) -> bool:
    """Whether `value` is a view of a parameter or a constant."""
    node = graph.producer(value)
    while node is not None and node.op in _VIEWS:
        value = node.inputs[0]
        node = graph.producer(value)
    return value in graph.parameters or (node is not None and node.op == "constant")
