"""The projections at the head of an attention layer as one.

Fuses   linear(x, w_q),   linear(x, w_k),   linear(x, w_v),   ...
into    slices of   linear(x, concat(w_q, w_k, w_v, ...))

Linears are siblings if they read one value, their modules have one parent, and the source holds
either all of their weights in few bits, or none; they are merged here if one of them leads to an
attention or a gated delta rule.  So the two low-rank projections of MLA are merged, and all those
of a linear attention layer, but not an MLP beside the attention.
The weights, and the biases if there are any, are joined when the artifact is written, with zeros
for those that have none.

Leaves it alone when
  weight  a weight is computed, not stored
  tied    a weight has another reader, which needs it as it is
  scales  a weight is held in few bits, and its scales cannot be joined with those beside it
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fusec.ir import OPS, Graph, Node
from fusec.passes.siblings import GUARDS, group, in_few_bits, linears_of, merged, parent
from fusec.rewrite import FusionPass, Guard, Match
from fusec.rewrite.driver import Builder
from fusec.target import Target

MIXERS = ("attention", "gated_delta_rule")
_CARRIERS = (
    "reshape",
    "transpose",
    "slice",
    "concat",
    "expand",
    "rope",
    "rms_norm",
    "layer_norm",
    "l2_norm",
    "dual_rms_norm",
    "causal_conv1d",
)
_MAX_STEPS = 256


class MergeQkv(FusionPass):
    """Begins at the first of the siblings."""

    name: ClassVar[str] = "merge_qkv"
    fusion: ClassVar[str | None] = "merge_qkv"
    after: ClassVar[tuple[str, ...]] = ("linear", "rope", "attention", "merge_gate_up")
    guards: ClassVar[tuple[Guard, ...]] = GUARDS

    def anchors(self) -> frozenset[str]:
        """Projections."""
        return frozenset({"linear"})

    def find(self, graph: Graph, node: Node) -> Match | None:
        """The siblings of `node`, if it is the first and one of them leads to a mixer."""
        beside = [
            each for each in linears_of(graph, node.inputs[0]) if parent(each) == parent(node)
        ]
        narrow = in_few_bits(graph, node)
        family = [each for each in beside if in_few_bits(graph, each) == narrow]
        if len(beside) == 2:
            family = beside  # one of each kind is refused, where that matters
        if len(family) < 2 or family[0] is not node:
            return None
        if not any(leads_to_mixer(graph, each) for each in family):
            return None
        return group(graph, family)

    def outputs(self, match: Match) -> tuple[str, ...]:
        """All projections."""
        return tuple(node.output for node in match.inner)

    def site(self, match: Match) -> str:
        """The attention module."""
        return parent(match.root) or match.root.name

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the joined projection."""
        return merged(match, build)


def leads_to_mixer(graph: Graph, linear: Node) -> bool:
    """Whether `linear` feeds an attention or a gated delta rule, through views, norms, and gates.

    One more linear may lie between, as in MLA.  The walk ends at sums, where the residual stream
    begins again.
    """
    waiting: list[tuple[Node, int]] = [(linear, 1)]
    seen = {linear.name}
    while waiting and len(seen) < _MAX_STEPS:
        node, more = waiting.pop()
        for value in node.outputs:
            for user in graph.users(value):
                if user.op in MIXERS:
                    return True
                left = more - (user.op == "linear")
                if user.name not in seen and left >= 0 and _carries(graph, user, linear):
                    seen.add(user.name)
                    waiting.append((user, left))
    return False


def _carries(graph: Graph, user: Node, linear: Node) -> bool:
    if user.op in _CARRIERS or user.op == "linear":
        return True
    if user.op not in OPS or not OPS[user.op].elementwise:
        return False
    computed = [value for value in user.inputs if graph.producer(value) is not None]
    if user.op == "add" and len({graph.type(value) for value in computed}) < len(computed):
        return False
    return parent(user) == parent(linear) or user.origin.path == parent(linear)
