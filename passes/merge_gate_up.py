"""The gate and up projections of an MLP as one.

Fuses   linear(x, w_gate),   linear(x, w_up)   that feed one gated activation
into    slices of   linear(x, concat(w_gate, w_up))

The weights, and the biases if there are any, are joined when the artifact is written, with zeros
for one that has none.

Leaves it alone when
  input   the two projections read different values
  weight  a weight is computed, not stored
  tied    a weight has another reader, which needs it as it is
  scales  a weight is held in few bits, and its scales cannot be joined with those beside it
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fusec.ir import Graph, Node
from fusec.passes.siblings import GUARDS, group, merged, parent
from fusec.rewrite import FusionPass, Guard, Match, Rejection
from fusec.rewrite.driver import Builder
from fusec.target import Target

GATED = ("silu_mul", "gelu_mul", "swiglu_oai")


def _input(match: Match, target: Target) -> Rejection | None:
    first, second = (node.inputs[0] for node in match.inner)
    if first == second:
        return None
    return Rejection("input", f"gate reads `%{first}`, but up reads `%{second}`", second)


class MergeGateUp(FusionPass):
    """Begins at a gated activation, or a product, whose operands are linears."""

    name: ClassVar[str] = "merge_gate_up"
    fusion: ClassVar[str | None] = "merge_gate_up"
    after: ClassVar[tuple[str, ...]] = GATED
    guards: ClassVar[tuple[Guard, ...]] = (_input, *GUARDS)

    def anchors(self) -> frozenset[str]:
        """The activations that take a gate."""
        return frozenset(GATED)

    def find(self, graph: Graph, node: Node) -> Match | None:
        """The linears that `node` reads."""
        gate, up = (graph.producer(value) for value in node.inputs)
        if gate is None or up is None or gate is up or (gate.op, up.op) != ("linear", "linear"):
            return None
        return group(graph, [gate, up])

    def outputs(self, match: Match) -> tuple[str, ...]:
        """Both projections."""
        return tuple(node.output for node in match.inner)

    def site(self, match: Match) -> str:
        """The MLP."""
        return parent(match.root) or match.root.name

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the joined projection."""
        return merged(match, build)
