"""Experts that every token visits, though most of them count for nothing.

Fuses, for scores s [T, E] that are scattered from k values a token into numbers that come to 0,

    sum over e of s[t, e] * down[e](act(gate_up[e](x[t])))   into   moe
    sum over e of down[e](act(gate_up[e](s[t, e] * x[t])))   into   moe of s * x, each token k times

where the second is right because an expert without biases makes nothing of nothing; the rows, each
multiplied by one of its token's scores, have weight 1.  The products are batches of E.

Leaves it alone when
  activation  the activation is not one of `moe` over halves of one product
  dtype       it is of f64, which the products by themselves have kernels for
  experts     the products are not with the matrices of one list of experts
  scores      the scores are not k values scattered over zeros at the indices of a top-k
  tokens      an expert does not see all tokens
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from fusec.ir import Graph, Node
from fusec.ir.types import Attr, Attrs, dim_attr, dims_attr, int_attr, ints_attr
from fusec.passes.attention_operands import as_type
from fusec.passes.experts_walk import GATED, before, sum_dtype, untransposed
from fusec.passes.facts import gelu_name
from fusec.rewrite import FusionPass, Guard, Match, Rejection
from fusec.rewrite.driver import Builder
from fusec.symbolic import Dim
from fusec.target import Target

FIXED_POINTS = {"sigmoid": -math.inf, "": 0.0}
"""What each function makes zero of, of those that scores may go through after the scatter."""


def _experts(match: Match, target: Target) -> Rejection | None:
    graph, at = match.graph, match.nodes["down"].name
    if "gate_up" not in match.nodes:
        return Rejection("experts", "there is no product before the activation", at)
    weights = [graph.type(match.values[name]) for name in ("gate_up", "down")]
    experts = match.facts["experts"]
    if all(kind.rank == 3 and kind.shape[0] == experts for kind in weights):
        if match.facts["transposed"] is not None:
            return None
    reason = f"`{weights[0]}` and `{weights[1]}` are not the matrices of {experts} experts"
    return Rejection("experts", reason, at)


def _activation(match: Match, target: Target) -> Rejection | None:
    if match.facts["activation"] is not None:
        return None
    at = match.nodes["down"].inputs[0]
    return Rejection("activation", f"`%{at}` is not an activation of halves of one product", at)


def _scores(match: Match, target: Target) -> Rejection | None:
    if "indices" in match.values:
        return None
    at = match.values["scores"]
    reason = f"`%{at}` is not made of values scattered over zeros at the indices of a top-k"
    return Rejection("scores", reason, at)


def _tokens(match: Match, target: Target) -> Rejection | None:
    if "x" in match.values:
        return None
    at = match.nodes["gate_up"].inputs[0]
    return Rejection("tokens", f"`%{at}` is not all tokens for each expert", at)


class DenseExperts(FusionPass):
    """Turns a sum over all experts into one over those that count."""

    name: ClassVar[str] = "dense_experts"
    fusion: ClassVar[str | None] = "moe"
    after: ClassVar[tuple[str, ...]] = ("activations", "swiglu_oai", "silu_mul", "gelu_mul")
    guards: ClassVar[tuple[Guard, ...]] = (
        _experts,
        _activation,
        _tokens,
        _scores,
        sum_dtype,
    )

    def anchors(self) -> frozenset[str]:
        """The sum over experts."""
        return frozenset(("reduce_sum",))

    def find(self, graph: Graph, node: Node) -> Match | None:
        """Walk from the sum over [E, T, H] up to the tokens."""
        kind = graph.type(node.inputs[0])
        if kind.rank != 3 or [axis % 3 for axis in ints_attr(node.attrs, "axes")] != [0]:
            return None
        return _walk(graph, node, kind.shape)

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Scale the tokens if the scores do that, then build the node."""
        graph, values, facts = match.graph, match.values, match.facts
        tokens, hidden, k = dims_attr(facts, "sizes")
        chosen = values["chosen"]
        if (function := facts["function"]) != "":
            chosen = build.value(str(function), [chosen])
        x = _shaped(build, values["x"], (tokens, hidden))
        indices = values["indices"]
        rows = tokens * k
        if facts["scaled_before"]:
            each = _shaped(build, x, (tokens, 1, hidden))
            column = _shaped(build, chosen, (tokens, k, 1))
            x = _shaped(build, build.value("mul", [each, column]), (rows, hidden))
            attrs: Attrs = {"value": 1.0, "dtype": graph.type(chosen).dtype, "shape": (rows, 1)}
            chosen = build.value("constant", [], attrs)
            indices = _shaped(build, indices, (rows, 1))
        names = ("activation", "alpha", "limit", "gate_up_layout", "gated", "transposed")
        moe: Attrs = {**{name: facts[name] for name in names}, "has_bias": False}
        inputs = [x, chosen, indices, values["gate_up"], values["down"]]
        result = build.value("moe", inputs, moe)
        if facts["scaled_before"] and k != 1:
            origin, at = match.root.origin, match.root.name
            parts: Attrs = {"shape": (tokens, k, hidden)}
            apart = graph.add("reshape", [result], parts, origin=origin, at=at).output
            axes: Attrs = {"axes": (1,), "keepdims": False}
            result = graph.add("reduce_sum", [apart], axes, origin=origin, at=at).output
        return {match.root.output: as_type(build, result, graph.type(match.root.output))}


def _shaped(build: Builder, value: str, shape: tuple[Dim, ...]) -> str:
    if build.graph.type(value).shape == shape:
        return value
    return build.value("reshape", [value], {"shape": shape})


def _walk(graph: Graph, root: Node, shape: tuple[Dim, ...]) -> Match | None:
    experts, tokens, hidden = shape
    inner = [root]
    value = _plain(graph, root.inputs[0], inner)
    scores = None
    node = graph.producer(value)
    if node is not None and node.op == "mul":
        split = _weighted(graph, node)
        if split is None:
            return None
        inner.append(node)
        value, scores = split
        value = _plain(graph, value, inner)
        node = graph.producer(value)
    if node is None or node.op != "matmul" or graph.type(node.output).rank != 3:
        return None
    down, nodes, values = node, {"down": node}, {}
    inner.append(down)
    act, facts = _activated(graph, _plain(graph, down.inputs[0], inner), inner)
    values["down"], turned = untransposed(graph, down.inputs[1])
    product = graph.producer(_plain(graph, act, inner)) if act is not None else None
    if product is None or product.op != "matmul" or graph.type(product.output).rank != 3:
        return None
    nodes["gate_up"] = product
    inner.append(product)
    values["gate_up"], also = untransposed(graph, product.inputs[1])
    facts["transposed"] = turned if turned == also else None
    rows = _plain(graph, product.inputs[0], inner)
    node = graph.producer(rows)
    facts["scaled_before"] = scores is None
    if scores is None:
        split = _weighted(graph, node) if node is not None and node.op == "mul" else None
        if split is None or node is None:
            return None
        inner.append(node)
        rows, scores = split
    if (x := _every_token(graph, rows, experts, tokens, hidden, inner)) is not None:
        values["x"] = x
    values["scores"] = scores
    k, function = _scattered(graph, scores, experts, tokens, values)
    return Match(
        graph,
        root,
        values,
        nodes,
        inner=tuple(dict.fromkeys(inner)),
        facts={**facts, "sizes": (tokens, hidden, k), "function": function, "experts": experts},
    )


def _plain(graph: Graph, value: str, inner: list[Node]) -> str:
    """Before casts, and reshapes that keep rows."""
    while (node := graph.producer(value)) is not None:
        if node.op == "reshape":
            shapes = (graph.type(each).shape for each in (node.inputs[0], value))
            if len({shape[-1:] for shape in shapes}) != 1:
                break
        elif node.op != "cast":
            break
        inner.append(node)
        value = node.inputs[0]
    return value


def _weighted(graph: Graph, node: Node) -> tuple[str, str] | None:
    """The rows, and the number for each, that `node` multiplies."""
    for rows, numbers in (node.inputs, node.inputs[::-1]):
        wide, thin = graph.type(rows).shape, graph.type(numbers).shape
        if thin == (*wide[:-1], 1) and wide[-1] != 1:
            return rows, numbers
    return None


def _activated(graph: Graph, value: str, inner: list[Node]) -> tuple[str | None, dict[str, Attr]]:
    """What the activation is of, and the attributes of `moe` that say which."""
    facts: dict[str, Attr] = {"alpha": None, "limit": None, "gated": True, "activation": None}
    node = graph.producer(value)
    if node is None or node.op not in ("silu_mul", "gelu_mul"):
        return value, {**facts, "gate_up_layout": "split"}
    inner.append(node)
    slices = [graph.producer(each) for each in node.inputs]
    gate, up = slices
    if gate is None or up is None or not gate.op == up.op == "slice":
        return value, {**facts, "gate_up_layout": "split"}
    inner += [gate, up]
    width = graph.type(gate.inputs[0]).shape[-1]
    windows = [tuple(part.attrs[key] for key in ("start", "stop", "step")) for part in (gate, up)]
    halves = isinstance(width, int) and windows == [
        (0, width // 2, 1),
        (width // 2, width, 1),
    ]
    last = all(
        int_attr(part.attrs, "axis") % graph.type(part.output).rank
        == graph.type(part.output).rank - 1
        for part in (gate, up)
    )
    known = halves and last and gate.inputs[0] == up.inputs[0]
    name = gelu_name(node) if node.op == "gelu_mul" else GATED[node.op]
    return gate.inputs[0], {
        **facts,
        "activation": name if known else None,
        "gate_up_layout": "split",
    }


def _every_token(
    graph: Graph, rows: str, experts: Dim, tokens: Dim, hidden: Dim, inner: list[Node]
) -> str | None:
    """The tokens [T, H] that `rows` repeats for each expert."""
    rows = _plain(graph, rows, inner)
    node = graph.producer(rows)
    if node is None or node.op != "expand":
        return None
    thin, wide = (graph.type(each).shape for each in (node.inputs[0], rows))
    if wide != (experts, tokens, hidden) or thin not in ((1, tokens, hidden), (tokens, hidden)):
        return None
    inner.append(node)
    return node.inputs[0]


def _scattered(
    graph: Graph, scores: str, experts: Dim, tokens: Dim, values: dict[str, str]
) -> tuple[Dim, str]:
    """Find the indices and the values that the scores [E, T] are scattered from."""
    turned = graph.producer(before(graph, scores, "reshape", "cast"))
    if turned is None or turned.op != "transpose" or ints_attr(turned.attrs, "perm") != (1, 0):
        return 0, ""
    node = graph.producer(before(graph, turned.inputs[0], "cast"))
    function = ""
    if node is not None and node.op in FIXED_POINTS:
        function = node.op
        node = graph.producer(before(graph, node.inputs[0], "cast"))
    if node is None or node.op != "scatter" or node.attrs.get("reduce") is not None:
        return 0, ""
    ground, indices, chosen = node.inputs
    picks = graph.producer(indices)
    fits = graph.type(node.output).shape == (tokens, experts)
    if not fits or int_attr(node.attrs, "axis") % 2 != 1 or _number(graph, ground) is None:
        return 0, ""
    if _number(graph, ground) != FIXED_POINTS[function]:
        return 0, ""
    if picks is None or picks.op != "topk" or indices != picks.outputs[1]:
        return 0, ""
    if int_attr(picks.attrs, "axis") % 2 != 1:  # a token may have an expert twice
        return 0, ""
    values |= {"indices": indices, "chosen": chosen}
    return dim_attr(picks.attrs, "k"), function


def _number(graph: Graph, value: str) -> float | None:
    """What every element of `value` is."""
    node = graph.producer(before(graph, value, "expand", "reshape", "cast"))
    if node is None or node.op not in ("constant", "full"):
        return None
    held = node.attrs["value"]
    return float(held) if isinstance(held, int | float) else None
