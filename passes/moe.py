"""Routed experts.

Fuses, for k experts a token, the sum over j < k of

    weights[t, j] * down(act(gate_up(x[t])))        with the weights of expert indices[t, j]

into `moe`, however its rows are ordered:

* grouped: the T*k rows are sorted by expert, multiplied by `grouped_mm` up to offsets that count
  the rows of each expert, and put back into order;
* batched: the matrices of each row's expert are gathered and multiplied row by row.

Gate and up are halves or alternate columns of one product, or there is no gate; the activation,
its limits, the layout of the weights and the biases are read from the graph.  The router, and
experts that every token visits, stay as they are.

Leaves it alone when
  activation  the activation is none that `moe` has
  bias        a bias is not picked by the expert of the row, or only one product has one
  dtype       it is of f64, which the products by themselves have kernels for
  gate        gate and up are not the two halves, gate first, or alternate columns, of one product
  layout      the two products read their weights in different orders
  offsets     the offsets are not the counts of the rows of each expert
  order       the rows are not those of the tokens in the order of their experts
  routing     the weights are not one number for each expert of each token
  sum         the rows of a grouped product do not end in a sum over the experts of a token
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import ClassVar

from fusec.ir import Graph, Node
from fusec.ir.types import Attr, dims_attr
from fusec.passes.attention_operands import as_type
from fusec.passes.experts_walk import ExpertsWalk, RefusedError, sum_dtype
from fusec.rewrite import Decision, DecisionLog, FusionPass, Guard, Match, Rejection
from fusec.rewrite.driver import Builder
from fusec.symbolic import Dim
from fusec.target import Target

MOST_STEPS = 32
"""Nodes between a grouped product and the sum that is looked for."""


def _walked(match: Match, target: Target) -> Rejection | None:
    refusal = match.facts.get("refusal")
    if refusal is None:
        return None
    assert isinstance(refusal, tuple)
    code, reason, at = map(str, refusal)
    return Rejection(code, reason, at)


class Moe(FusionPass):
    """One node for gathering, both products, activation, weighting and the sum."""

    name: ClassVar[str] = "moe"
    fusion: ClassVar[str | None] = "moe"
    after: ClassVar[tuple[str, ...]] = ("activations", "swiglu_oai", "silu_mul", "gelu_mul")
    guards: ClassVar[tuple[Guard, ...]] = (_walked, sum_dtype)

    def anchors(self) -> frozenset[str]:
        """The sum over the experts of a token."""
        return frozenset(("reduce_sum",))

    def find(self, graph: Graph, node: Node) -> Match | None:
        """Walk from the sum up to the tokens."""
        walk = ExpertsWalk(graph, node)
        try:
            return walk.match()
        except RefusedError as refused:
            facts: Mapping[str, Attr] = {"refusal": (refused.code, refused.reason, refused.at)}
            return Match(graph, node, inner=(node,), facts=facts)

    def run(self, graph: Graph, target: Target, log: DecisionLog) -> int:
        """Rewrite what may be, and record grouped products that no sum led to."""
        rewritten = super().run(graph, target, log)
        decided = {decision.node for decision in log if decision.fusion == self.fusion}
        for node in graph.nodes():
            if node.op != "grouped_mm" or _leads_to(graph, node, decided):
                continue
            decided.add(node.name)
            reason = f"`%{node.name}` does not end in a sum over the experts of each token"
            site = node.origin.path or node.name
            log.add(Decision("moe", site, "refused", "sum", reason, node=node.name))
        return rewritten

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the node; its result has the shape and dtype of the sum."""
        graph, values = match.graph, match.values
        names = ("x", "weights", "indices", "gate_up", "down", "gate_up_bias", "down_bias")
        inputs = [values[name] for name in names if name in values]
        tokens, k = _routes(match)
        shapes = ((tokens, graph.type(inputs[0]).shape[-1]), (tokens, k), (tokens, k))
        for position, shape in enumerate(shapes):
            if graph.type(inputs[position]).shape != shape:
                inputs[position] = build.value("reshape", [inputs[position]], {"shape": shape})
        attrs = {key: value for key, value in match.facts.items() if key != "routes"}
        result = build.value("moe", inputs, attrs)
        return {match.root.output: as_type(build, result, graph.type(match.root.output))}


def _leads_to(graph: Graph, node: Node, wanted: set[str]) -> bool:
    """Whether one of `wanted`, or another grouped product, is among what soon reads `node`."""
    waiting, seen = deque([node]), {node.name}
    while waiting and len(seen) < MOST_STEPS:
        current = waiting.popleft()
        for reader in graph.users(current.output):
            if reader.name in wanted or reader.op == "grouped_mm":
                return True
            if reader.name not in seen and len(reader.outputs) == 1:
                seen.add(reader.name)
                waiting.append(reader)
    return False


def _routes(match: Match) -> tuple[Dim, ...]:
    return dims_attr(match.facts, "routes")
