"""Depthwise convolution over the past.

Fuses   conv(x [B, C, S], w [C, 1, K]) with C groups, padded by K - 1 on the left, cut to S
into    causal_conv1d(x, w [C, K])

and takes a silu of the result in.  The padding is the convolution's own, or a `pad` before it, or
zeros joined before x.

Leaves it alone when
  padding  what is before the first element, or what is cut off, is not the K - 1 of a causal one
  weight   the weight is not a parameter, so that it cannot be flattened ahead of time
  dtype    it is of f64, which kernels for convolutions as such compute
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fusec.ir import Graph, Node, TensorType
from fusec.ir.types import Attrs, dims_attr, int_attr, ints_attr
from fusec.passes.linear_epilogue import DTYPES
from fusec.passes.quantised_weights import parameter
from fusec.rewrite import FusionPass, Guard, Match, Rejection
from fusec.rewrite.driver import Builder
from fusec.symbolic import Dim
from fusec.target import Target


def _weight(match: Match, target: Target) -> Rejection | None:
    value = match.values["weight"]
    if value in match.graph.parameters:
        return None
    return Rejection("weight", f"`%{value}` is not a parameter", value)


def _padding(match: Match, target: Target) -> Rejection | None:
    low, start = match.facts["low"], match.facts["start"]
    taps = match.graph.type(match.values["weight"]).shape[2]
    whole = match.graph.type(match.values["x"]).shape[2]
    length = match.graph.type(match.root.output).shape[2]
    if isinstance(taps, int) and low == taps - 1 and start == 0 and length == whole:
        return None
    reason = (
        f"{low} zeros come before the first of {whole} elements, and {length} from {start} stay"
    )
    return Rejection("padding", f"{reason}, with {taps} taps", match.root.output)


def _dtype(match: Match, target: Target) -> Rejection | None:
    x = match.graph.type(match.values["x"])
    if x.dtype in DTYPES:
        return None
    return Rejection("dtype", f"the convolution is of {x.dtype}", match.root.output)


class CausalConv1d(FusionPass):
    """One node for padding, convolution, cut and activation."""

    name: ClassVar[str] = "causal_conv1d"
    after: ClassVar[tuple[str, ...]] = ("canonicalise", "activations")
    guards: ClassVar[tuple[Guard, ...]] = (_weight, _padding, _dtype)

    def anchors(self) -> frozenset[str]:
        """The convolution; what follows it is taken in from there."""
        return frozenset(("conv",))

    def find(self, graph: Graph, node: Node) -> Match | None:
        """A convolution of one axis, each channel by itself, and the slice and silu after it."""
        kind = graph.type(node.inputs[1])
        channels = graph.type(node.inputs[0]).shape[1]
        plain = all(ints_attr(node.attrs, key) == (1,) for key in ("stride", "dilation"))
        depthwise = node.attrs["groups"] == channels == kind.shape[0]
        if not plain or not depthwise or channels == 1:
            return None
        x, low, before = _padded(graph, node.inputs[0])
        padding = ints_attr(node.attrs, "padding")[0]
        inner, root = [*before, node], node
        start: Dim = 0
        after = _only_reader(graph, root)
        if after is not None and after.op == "slice" and _cuts_last_axis(graph, after):
            start = dims_attr({"at": (after.attrs["start"],)}, "at")[0]
            inner, root = [*inner, after], after
            after = _only_reader(graph, root)
        activation = "none"
        if after is not None and after.op == "silu":
            inner, root, activation = [*inner, after], after, "silu"
        return Match(
            graph,
            root,
            {"x": x, "weight": node.inputs[1]},
            {"conv": node},
            inner=tuple(reversed(inner)),
            facts={"low": low + padding, "start": start, "activation": activation},
        )

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Flatten the weight, which costs nothing at run time, and build the node."""
        graph, value = match.graph, match.values["weight"]
        weight = graph.parameters[value]
        channels, _, taps = weight.shape
        kind = TensorType(weight.type.dtype, (channels, taps))
        derived = weight.derive(
            f"{weight.name}.flat", kind, "flatten", lambda array: array.reshape(channels, taps)
        )
        flat = parameter(graph, f"{value}_flat", derived)
        bias = match.nodes["conv"].inputs[2:]
        attrs: Attrs = {"activation": match.facts["activation"], "has_bias": bool(bias)}
        inputs = [match.values["x"], flat, *bias]
        return {match.root.output: build.value("causal_conv1d", inputs, attrs)}


def _padded(graph: Graph, value: str) -> tuple[str, Dim, list[Node]]:
    """What is padded with zeros before its last axis, by how many, and by which node."""
    node = graph.producer(value)
    if node is None:
        return value, 0, []
    rank = graph.type(value).rank
    if node.op == "pad":
        low, high = dims_attr(node.attrs, "low"), dims_attr(node.attrs, "high")
        if not any(low[:-1]) and not any(high) and not node.attrs.get("value"):
            return node.inputs[0], low[-1], [node]
    elif node.op == "concat" and len(node.inputs) == 2:
        zeros, x = node.inputs
        if int_attr(node.attrs, "axis") % rank == rank - 1 and _is_zero(graph, zeros):
            return x, graph.type(zeros).shape[-1], [node]
    return value, 0, []


def _is_zero(graph: Graph, value: str) -> bool:
    node = graph.producer(value)
    while node is not None and node.op in ("expand", "reshape", "cast"):
        node = graph.producer(node.inputs[0])
    return node is not None and node.op in ("constant", "full") and node.attrs["value"] == 0


def _cuts_last_axis(graph: Graph, node: Node) -> bool:
    rank = graph.type(node.inputs[0]).rank
    return int_attr(node.attrs, "axis") % rank == rank - 1 and node.attrs["step"] == 1


def _only_reader(graph: Graph, node: Node) -> Node | None:
    readers = graph.users(node.output)
    return readers[0] if len(readers) == 1 and node.output not in graph.outputs else None
