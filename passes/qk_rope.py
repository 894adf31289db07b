"""The rotations of queries and keys in one launch.

Fuses   rope(q, cos, sin),   rope(k, cos, sin)
into    qk_norm_rope(q, k, cos, sin) {style, rotary_dim, deinterleave}

where attention reads the two as its queries and keys: as they are, expanded, normed, scaled, behind
a cache, or beside columns that are not rotated, as in multi-head latent attention.  That they were
rotations is said by `rope`, whose rows stay.

Leaves it alone when
  tables  q and k are not rotated by the same tables
  style   they are rotated in different ways, or not equally far
  shape   they differ in more than their heads
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fusec.ir import Attr, Graph, Node
from fusec.ir.ops.raised import differ_in_heads
from fusec.rewrite import FusionPass, Guard, Match, Rejection
from fusec.rewrite.driver import Builder
from fusec.target import Target

ROTATION = ("style", "rotary_dim", "deinterleave")
"""Attributes of a rotation."""

_CARRIERS = (
    "cast",
    "concat",
    "expand",
    "gather",
    "l2_norm",
    "layer_norm",
    "mul",
    "reshape",
    "rms_norm",
    "transpose",
)
_MOST_STEPS = 16


def same_tables(match: Match, target: Target) -> Rejection | None:
    """Guard: q and k are rotated by the same angles."""
    q, k = match.nodes["q"], match.nodes["k"]
    if q.inputs[1:] == k.inputs[1:]:
        return None
    tables = ["`%{}` and `%{}`".format(*node.inputs[1:]) for node in (q, k)]
    reason = f"q is rotated by {tables[0]}, k by {tables[1]}"
    return Rejection("tables", reason, k.name)


def same_style(match: Match, target: Target) -> Rejection | None:
    """Guard: the same elements of q and k are turned together."""
    q, k = match.nodes["q"], match.nodes["k"]
    differing = [name for name in ROTATION if q.attrs[name] != k.attrs[name]]
    if not differing:
        return None
    name = differing[0]
    reason = f"`{name}` is {q.attrs[name]} for q and {k.attrs[name]} for k"
    return Rejection("style", reason, k.name)


def same_rows(match: Match, target: Target) -> Rejection | None:
    """Guard: q and k are rows of the same tokens, and where their heads differ they are counted."""
    q, k = (match.graph.type(match.nodes[name].output) for name in ("q", "k"))
    if differ_in_heads(q, k):
        pairs = zip(q.shape, k.shape, strict=True)
        sizes = [size for pair in pairs if pair[0] != pair[1] for size in pair]
        if all(isinstance(size, int) for size in sizes):
            return None
    reason = f"q is `{q}` and k is `{k}`, which differ in more than their heads"
    return Rejection("shape", reason, match.nodes["k"].name)


class QkRope(FusionPass):
    """Begins at an attention, and walks back to what rotated its queries and its keys."""

    name: ClassVar[str] = "qk_rope"
    fusion: ClassVar[str | None] = "qk_rope"
    after: ClassVar[tuple[str, ...]] = ("rope", "attention", "merge_qkv", "qk_norm_rope")
    guards: ClassVar[tuple[Guard, ...]] = (same_tables, same_style, same_rows)
    instead_of: ClassVar[tuple[str, ...]] = ("qk_norm_rope",)
    beside: ClassVar[tuple[str, ...]] = ("rope",)

    def anchors(self) -> frozenset[str]:
        """What reads queries and keys."""
        return frozenset({"attention"})

    def find(self, graph: Graph, node: Node) -> Match | None:
        """The rotations of both, if neither is the other or reads it."""
        q, k = (rotation_before(graph, value) for value in node.inputs[:2])
        if q is None or k is None or q is k:
            return None
        found = Match(graph, q, nodes={"q": q, "k": k}, inner=(q, k))
        return None if self.reads_itself(found) else found

    def reads_itself(self, match: Match) -> bool:
        """Whether one node of the match reads what another gives to the outside."""
        given = self.outputs(match)
        return any(value in given for node in match.inner for value in node.inputs)

    def outputs(self, match: Match) -> tuple[str, ...]:
        """Rotated queries and keys."""
        return match.nodes["q"].output, match.nodes["k"].output

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the node."""
        q, k = match.nodes["q"], match.nodes["k"]
        attrs: dict[str, Attr] = {
            **{name: q.attrs[name] for name in ROTATION},
            "has_norm": False,
            "has_weight": False,
            "eps": 0.0,
            "weight_offset": 0,
        }
        operands = (q.inputs[0], k.inputs[0], *q.inputs[1:])
        made = build.node("qk_norm_rope", operands, attrs)
        return dict(zip(self.outputs(match), made.outputs, strict=True))


def rotation_before(graph: Graph, value: str) -> Node | None:
    """The rotation that all of `value`, or a part of its columns, comes from."""
    waiting = [value]
    for _ in range(_MOST_STEPS):
        if not waiting:
            return None
        node = graph.producer(waiting.pop(0))
        if node is not None and node.op == "rope":
            return node
        if node is not None and node.op in _CARRIERS:
            waiting += node.inputs
    return None
