"""Gated delta rule: what models do to queries, keys and gates just before it.

Fuses, around a `gated_delta_rule`,

    q, k repeated n times a head, [B, S, Hk, D] to [B, S, Hk*n, D]   into   q, k as they were
    q, k over their length along the last axis                       into   qk_l2_norm, eps
    q multiplied by a constant                                       into   scale

Casts between them go: the rule computes in f32.  Every `gated_delta_rule` has its row in the
decisions after this pass.

Leaves it alone when
  eps     q and k are normed with different eps, or with an eps that bounds the length
  heads   only one of q and k is repeated, or both in different ways
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fusec.ir import Graph, Node
from fusec.ir.types import Attr, float_attr
from fusec.passes.attention_operands import factor
from fusec.rewrite import Decision, DecisionLog, Pass, Rejection
from fusec.rewrite.driver import Builder
from fusec.symbolic import Dim
from fusec.target import Target


@dataclass(slots=True)
class _Operand:
    """What leads to q or k.

    Attributes:
        value: where it begins.
        repeats: heads before and times each, if heads are repeated.
        eps: of the norm, if there is one.
        mode: of the norm, if there is one.
        factor: the product of the constants that it is multiplied by.
    """

    value: str
    repeats: tuple[Dim, Dim] | None = None
    eps: float | None = None
    mode: str | None = None
    factor: float = 1.0


class GatedDeltaRule(Pass):
    """Takes repetition, norms and scale into the rule."""

    name: ClassVar[str] = "gated_delta_rule"
    after: ClassVar[tuple[str, ...]] = ("canonicalise", "l2_norm")

    def run(self, graph: Graph, target: Target, log: DecisionLog) -> int:
        """Look at every `gated_delta_rule`."""
        nodes = [node for node in graph.nodes() if node.op == "gated_delta_rule"]
        return sum(_fold(graph, node, log) for node in nodes)


def _fold(graph: Graph, node: Node, log: DecisionLog) -> bool:
    q, k = (_walk(graph, node, value) for value in node.inputs[:2])
    site = node.origin.path or node.name
    rejection = _refused(q, k, node)
    if rejection is not None:
        row = Decision("gated_delta_rule", site, "refused", rejection.code, rejection.reason)
        log.add(Decision(row.fusion, site, row.status, row.code, row.reason, node=node.name))
        return False
    if (q.value, k.value) == node.inputs[:2]:
        log.add(Decision("gated_delta_rule", site, "fired", node=node.name))
        return False
    attrs: dict[str, Attr] = {**node.attrs}
    attrs["scale"] = float_attr(node.attrs, "scale") * q.factor
    if q.eps is not None:
        attrs |= {"qk_l2_norm": True, "eps": q.eps}
    build = Builder(graph, node)
    inputs = [_narrow(build, operand, node.inputs[2]) for operand in (q, k)]
    result = build.value("gated_delta_rule", [*inputs, *node.inputs[2:]], attrs)
    graph.replace_uses(node.output, result)
    graph.prune([node.name])
    log.absorb([node.name])
    log.add(Decision("gated_delta_rule", site, "fired", node=result))
    return True


def _refused(q: _Operand, k: _Operand, node: Node) -> Rejection | None:
    if (q.eps, q.mode) != (k.eps, k.mode) or q.mode == "max":
        reason = f"q is normed with eps {q.eps} ({q.mode}), k with {k.eps} ({k.mode})"
        return Rejection("eps", reason, node.name)
    if q.repeats != k.repeats:
        return Rejection("heads", "q and k are not repeated over heads alike", node.name)
    return None


def _walk(graph: Graph, node: Node, value: str) -> _Operand:
    """Go up from q or k past norms, repetition, casts, and for q constants."""
    found = _Operand(value)
    is_query = value == node.inputs[0] and value != node.inputs[1]
    normed = bool(node.attrs.get("qk_l2_norm"))
    while (before := graph.producer(found.value)) is not None:
        if before.op == "l2_norm" and found.eps is None and not normed:
            found.eps = float_attr(before.attrs, "eps")
            found.mode = str(before.attrs["mode"])
            found.value = before.inputs[0]
        elif before.op == "cast" and graph.type(before.inputs[0]).element.is_float:
            found.value = before.inputs[0]
        elif (repeated := _repeated(graph, before)) is not None and found.repeats is None:
            found.value, *rest = repeated
            found.repeats = (rest[0], rest[1])
        elif (
            is_query
            and found.eps is None
            and not normed
            and (scaled := factor(graph, found.value)) is not None
        ):
            found.value = scaled[0]
            found.factor *= scaled[1]
        else:
            break
    if found.repeats is None and found.eps is None and found.factor == 1.0:
        return _Operand(value)  # casts alone stay: the operand has the dtype that it has
    return found


def _repeated(graph: Graph, node: Node) -> tuple[str, Dim, Dim] | None:
    """What `node` repeats over heads: a reshape of an expand of [B, S, Hk, 1, D]."""
    if node.op != "reshape":
        return None
    wide = graph.producer(node.inputs[0])
    if wide is None or wide.op != "expand":
        return None
    spread, thin = (graph.type(value).shape for value in (wide.output, wide.inputs[0]))
    shape = graph.type(node.output).shape
    if len(spread) != 5 or len(shape) != 4 or thin != (*spread[:3], 1, spread[4]):
        return None
    if shape != (*spread[:2], spread[2] * spread[3], spread[4]):
        return None
    source, inner = wide.inputs[0], graph.producer(wide.inputs[0])
    if inner is not None and inner.op == "reshape":
        if graph.type(inner.inputs[0]).shape == (*spread[:3], spread[4]):
            source = inner.inputs[0]
    return source, spread[2], spread[3]


def _narrow(build: Builder, operand: _Operand, like: str) -> str:
    """The value where `operand` begins, [B, S, Hk, D], in the dtype of `like`."""
    graph, value = build.graph, operand.value
    shape = graph.type(value).shape
    if len(shape) == 5:
        value = build.value("reshape", [value], {"shape": (*shape[:3], shape[4])})
    dtype = graph.type(like).dtype
    if graph.type(value).dtype != dtype:
        value = build.value("cast", [value], {"dtype": dtype})
    return value
