"""The norms of queries and keys and their rotations in one launch.

Fuses   rope(rms_norm(q, w_q), cos, sin),   rope(rms_norm(k, w_k), cos, sin)
        rms_norm(rope(q, cos, sin)),        rms_norm(rope(k, cos, sin))
into    qk_norm_rope(q, k, w_q, w_k, cos, sin) {eps, weight_offset, style, rotary_dim, deinterleave}

where attention reads the two as its queries and keys.  Each norm goes over the elements of a head,
before or after heads and tokens change places: the operands are views of what was normed.  The
operation computes in f32 and rounds once; that of the normed values falls away.  Where this is
refused, `qk_rope` still does both rotations at once.

A norm behind the rotation, as Llama 4 has it, is one before it: a row that is turned keeps its
length.  Casts around the two, to f32 and back, go with them.

Leaves it alone when
  single  only one of q and k is normed
  head    a norm goes over something else than the elements of a head
  eps     the norms have different eps
  weight  one norm has a weight and the other has none
  offset  one norm multiplies by 1 + w and the other by w
  order   the norms come after the rotations and have weights
  angle   they come after, and the tables are not known to be cosine and sine of one angle
  tables  q and k are not rotated by the same tables
  style   they are rotated in different ways, or not equally far
  shape   they differ in more than their heads
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fusec.ir import Attr, Graph, Node
from fusec.ir.types import bool_attr, float_attr, ints_attr
from fusec.passes.facts import before_widening, only_reader
from fusec.passes.qk_rope import ROTATION, QkRope, same_rows, same_style, same_tables
from fusec.passes.tables import turn_by_one_angle
from fusec.rewrite import Guard, Match, Rejection
from fusec.rewrite.driver import Builder
from fusec.target import Target

_VIEWS = ("reshape", "transpose")


def _single(match: Match, target: Target) -> Rejection | None:
    normed, plain = ("q", "k") if "q_norm" in match.nodes else ("k", "q")
    if f"{plain}_norm" in match.nodes:
        return None
    reason = f"{normed} is normed and {plain} is not"
    return Rejection("single", reason, match.nodes[f"{normed}_norm"].name)


def _head(match: Match, target: Target) -> Rejection | None:
    for name in ("q", "k"):
        norm, rope = match.nodes[f"{name}_norm"], match.nodes[name]
        if _follows(norm, rope):
            continue
        if not all(_keeps_rows(match.graph, view) for view in _views(match.graph, rope)):
            kind = match.graph.type(norm.output)
            reason = f"the norm goes over rows of `{kind}`, which are not the heads of {name}"
            return Rejection("head", reason, norm.name)
    return None


def _differing(match: Match, attribute: str, reason: str) -> Rejection | None:
    """A refusal, if an attribute differs between the norms, with the attribute's last word."""
    q, k = match.nodes["q_norm"], match.nodes["k_norm"]
    if q.attrs[attribute] == k.attrs[attribute]:
        return None
    return Rejection(attribute.rpartition("_")[2], reason, k.name)


def _eps(match: Match, target: Target) -> Rejection | None:
    return _differing(match, "eps", "the norms of q and k have different eps")


def _weight(match: Match, target: Target) -> Rejection | None:
    return _differing(match, "has_weight", "one of the norms has no weight")


def _offset(match: Match, target: Target) -> Rejection | None:
    return _differing(match, "weight_offset", "one norm adds 1 to its weight, the other 0")


def _order(match: Match, target: Target) -> Rejection | None:
    q, norm = match.nodes["q"], match.nodes["q_norm"]
    if not (_follows(norm, q) and bool_attr(norm.attrs, "has_weight")):
        return None
    return Rejection("order", "the norms come after the rotations and have weights", norm.name)


def _angle(match: Match, target: Target) -> Rejection | None:
    for name in ("q", "k"):
        rope, norm = match.nodes[name], match.nodes[f"{name}_norm"]
        cos, sin = rope.inputs[1:]
        bits = match.graph.type(_last(match, name).output).element.bits
        if _follows(norm, rope) and not turn_by_one_angle(match.graph, cos, sin, bits):
            reason = f"`%{cos}` and `%{sin}` are not known to turn by one angle and keep lengths"
            return Rejection("angle", reason, rope.name)
    return None


class QkNormRope(QkRope):
    """Finds what `qk_rope` finds, and the norms before it or after it."""

    name: ClassVar[str] = "qk_norm_rope"
    fusion: ClassVar[str | None] = "qk_norm_rope"
    after: ClassVar[tuple[str, ...]] = ("rope", "attention", "merge_qkv", "rms_norm")
    guards: ClassVar[tuple[Guard, ...]] = (
        _single,
        _head,
        _eps,
        _weight,
        _offset,
        _order,
        _angle,
        same_tables,
        same_style,
        same_rows,
    )
    instead_of: ClassVar[tuple[str, ...]] = ()
    beside: ClassVar[tuple[str, ...]] = ()

    def find(self, graph: Graph, node: Node) -> Match | None:
        """The rotations of q and k, and the norm of at least one of them."""
        found = super().find(graph, node)
        if found is None:
            return None
        nodes, inner = dict(found.nodes), list(found.inner)
        for name, rope in found.nodes.items():
            views = _views(graph, rope)
            norm = graph.producer((views[-1] if views else rope).inputs[0])
            if norm is not None and norm.op == "rms_norm":
                nodes[f"{name}_norm"] = norm
                inner += [*views, norm]
        if len(nodes) == 2:
            nodes |= _norms_after(graph, found)
            inner += [node for name, node in nodes.items() if name not in found.nodes]
        found = Match(graph, found.root, nodes=nodes, inner=tuple(inner))
        return None if len(nodes) == 2 or self.reads_itself(found) else found

    def outputs(self, match: Match) -> tuple[str, ...]:
        """Rotated and normed queries and keys."""
        return _last(match, "q").output, _last(match, "k").output

    def details(self, match: Match, target: Target) -> Mapping[str, str | int | float]:
        """The eps of the norms."""
        return {"eps": float_attr(match.nodes["q_norm"].attrs, "eps")}

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the node, and the views that its operands are."""
        nodes = match.nodes
        norms = nodes["q_norm"], nodes["k_norm"]
        operands = [_operand(match, name, build) for name in ("q", "k")]
        weights = [value for norm in norms for value in norm.inputs[1:]]
        attrs: dict[str, Attr] = {
            **{name: nodes["q"].attrs[name] for name in ROTATION},
            **{name: norms[0].attrs[name] for name in ("has_weight", "eps", "weight_offset")},
            "has_norm": True,
        }
        made = build.node("qk_norm_rope", (*operands, *weights, *nodes["q"].inputs[1:]), attrs)
        return dict(zip(self.outputs(match), made.outputs, strict=True))


def _norms_after(graph: Graph, found: Match) -> dict[str, Node]:
    """The norms of what was rotated, and casts of both back to what it was widened from."""
    norms: dict[str, Node] = {}
    casts: dict[str, Node] = {}
    for name, rope in found.nodes.items():
        norm = next((node for node in graph.users(rope.output) if node.op == "rms_norm"), None)
        if norm is None:
            continue
        norms[f"{name}_norm"] = norm
        cast = only_reader(graph, norm.output)
        narrow = graph.type(before_widening(graph, rope.inputs[0])).dtype
        if cast is not None and cast.op == "cast" and graph.type(cast.output).dtype == narrow:
            casts[f"{name}_cast"] = cast
    return norms | casts if len(casts) == 2 else norms


def _follows(norm: Node, rope: Node) -> bool:
    """Whether the norm is of what was rotated."""
    return norm.inputs[0] == rope.output


def _last(match: Match, name: str) -> Node:
    """The node that gives the result for the queries or the keys."""
    rope, norm = match.nodes[name], match.nodes.get(f"{name}_norm")
    if norm is None or not _follows(norm, rope):
        return rope
    return match.nodes.get(f"{name}_cast", norm)


def _operand(match: Match, name: str, build: Builder) -> str:
    """What is normed and rotated, seen as `rope` saw it; before a cast that a later one undoes."""
    rope, norm = match.nodes[name], match.nodes[f"{name}_norm"]
    if not _follows(norm, rope):
        return _viewed(match.graph, rope, build)
    is_narrowed = f"{name}_cast" in match.nodes
    return before_widening(match.graph, rope.inputs[0]) if is_narrowed else rope.inputs[0]


def _views(graph: Graph, rope: Node) -> list[Node]:
    """The views that `rope` reads its operand through, the last one first."""
    found: list[Node] = []
    node = graph.producer(rope.inputs[0])
    while node is not None and node.op in _VIEWS:
        found.append(node)
        node = graph.producer(node.inputs[0])
    return found


def _keeps_rows(graph: Graph, view: Node) -> bool:
    """Whether rows of the operand are rows of the result."""
    before, after = (graph.type(value) for value in (view.inputs[0], view.output))
    if view.op == "transpose":
        return ints_attr(view.attrs, "perm")[-1] == before.rank - 1
    return before.shape[-1:] == after.shape[-1:]


def _viewed(graph: Graph, rope: Node, build: Builder) -> str:
    """What was normed, seen as its norm was seen by `rope`."""
    views = _views(graph, rope)
    norm = graph.producer((views[-1] if views else rope).inputs[0])
    assert norm is not None
    value = norm.inputs[0]
    for view in reversed(views):
        value = build.value(view.op, [value], view.attrs)
    return value
