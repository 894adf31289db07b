"""What follows a convolution: a batch norm, the join of a residual stream, an activation.

Fuses   conv(x, w [, b]) * scale + shift, one number for each filter
        that, or conv(x, w [, b]), + residual
        silu, gelu, quick_gelu, relu, relu6 or hardswish of any of these
into    conv_epilogue(x, w [, scale] [, bias] [, residual]) {activation}

The kernel has the sums in registers: it does all of that in f32, rounds once, and nothing is
written in between.  Scale and bias are kept in f32, so that a batch norm is not rounded into the
filters.

Leaves it alone when
  dtype    the operands are of a dtype that the matrix units do not take, or the result of another
  channel  a factor or an addend is not one number for each filter
  shape    the residual is widened, or widens the result
  weight   the size of the filters is not known at compile time
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from fusec.ir import Attr, Node
from fusec.ir.ops.raised import AFTER_FILTERS, after_filters
from fusec.passes.facts import gelu_name, residual_keeps_shape
from fusec.passes.linear_epilogue import DTYPES
from fusec.rewrite import FusionPass, Guard, Match, Op, Rejection, Var
from fusec.rewrite.driver import Builder
from fusec.target import Target

ACTIVATIONS = ("silu", "gelu", "quick_gelu", "relu", "hardswish")

_X, _W, _RESIDUAL = Var("x"), Var("w"), Var("residual")
_CONVOLUTIONS = (
    Op("conv", (_X, _W, Var("b")), name="product"),
    Op("conv", (_X, _W), name="product"),
)


def _fused(count: int, **attrs: Attr) -> Op:
    """An epilogue without an activation so far, and with `count` operands after the filters."""
    operands = tuple(Var(f"follows_{index}") for index in range(count))
    return Op(
        "conv_epilogue", (_X, _W, *operands), name="product", attrs={"activation": "none", **attrs}
    )


def _batch_norms() -> Iterator[Op]:
    for conv in _CONVOLUTIONS:
        yield _affine(conv)
        yield Op("cast", (_affine(Op("cast", (conv,))),))


def _affine(sums: Op) -> Op:
    return Op("add", (Op("mul", (sums, Var("scale"))), Var("shift")))


def _activated(sums: Op) -> Iterator[Op]:
    yield Op(ACTIVATIONS, (sums,), name="activation")
    yield Op("clamp", (sums,), name="activation", attrs={"min": 0.0, "max": 6.0})


def _dtype(match: Match, target: Target) -> Rejection | None:
    x, result = (match.graph.type(value) for value in (match.values["x"], match.root.output))
    if x.dtype not in DTYPES:
        return Rejection("dtype", f"the convolution is of {x.dtype}", match.root.name)
    if result.dtype != x.dtype:
        reason = f"the convolution is of {x.dtype}, what follows it of {result.dtype}"
        return Rejection("dtype", reason, match.root.name)
    return None


def _channel(match: Match, target: Target) -> Rejection | None:
    result = match.graph.type(match.root.output)
    wanted = (1, result.shape[1], *(1,) * (result.rank - 2))
    for name in ("scale", "shift"):
        if name not in match.values:
            continue
        given = match.graph.type(match.values[name])
        if given.rank >= result.rank - 1 and given.shape == wanted[-given.rank :]:
            continue
        reason = f"`{given}` is not one number for each of {result.shape[1]} filters"
        return Rejection("channel", reason, match.values[name])
    return None


def _weight(match: Match, target: Target) -> Rejection | None:
    weight = match.graph.type(match.values["w"])
    if all(isinstance(size, int) for size in weight.shape):
        return None
    return Rejection("weight", f"the filters are `{weight}`", match.values["w"])


class ConvEpilogue(FusionPass):
    """First the batch norm, then the residual stream, then the activation."""

    name: ClassVar[str] = "conv_epilogue"
    fusion: ClassVar[str | None] = "conv_epilogue"
    after: ClassVar[tuple[str, ...]] = ("activations", "causal_conv1d")
    patterns: ClassVar[tuple[Op, ...]] = (
        *_batch_norms(),
        *(
            Op("add", (sums, _RESIDUAL))
            for sums in (*_CONVOLUTIONS, _fused(2, has_scale=True, has_residual=False))
        ),
        *(
            activated
            for sums in (*_CONVOLUTIONS, *(_fused(count) for count in (1, 2, 3)))
            for activated in _activated(sums)
        ),
    )
    guards: ClassVar[tuple[Guard, ...]] = (_dtype, _channel, residual_keeps_shape, _weight)
    beside: ClassVar[tuple[str, ...]] = ("causal_conv1d",)

    def site(self, match: Match) -> str:
        """The module of the convolution."""
        return match.nodes["product"].origin.path or super().site(match)

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the node."""
        conv = match.nodes["product"]
        operands = _following(build, conv)
        if "scale" in match.values:
            scale, bias = (_per_filter(build, match.values[name]) for name in ("scale", "shift"))
            if "bias" in operands:
                bias = build.value("add", [build.value("mul", [operands["bias"], scale]), bias])
            operands |= {"scale": scale, "bias": bias}
        if "residual" in match.values:
            operands["residual"] = match.values["residual"]
        attrs: dict[str, Attr] = {
            **conv.attrs,
            "activation": _activation(match.nodes.get("activation")),
            **{f"has_{name}": name in operands for name in AFTER_FILTERS},
        }
        follow = [operands[name] for name in AFTER_FILTERS if name in operands]
        value = build.value("conv_epilogue", [*conv.inputs[:2], *follow], attrs)
        return {match.root.output: value}


def _following(build: Builder, conv: Node) -> dict[str, str]:
    """What follows the sums of `conv` so far."""
    if conv.op == "conv":
        return {} if len(conv.inputs) == 2 else {"bias": _per_filter(build, conv.inputs[2])}
    return after_filters(conv.inputs, conv.attrs)


def _per_filter(build: Builder, value: str) -> str:
    """`value`, with one number for each filter, as f32 [O]."""
    graph = build.graph
    node, type = graph.producer(value), graph.type(value)
    flat = (type.elements,)
    if type.shape != flat and node is not None and node.op == "reshape":
        if graph.type(node.inputs[0]).shape == flat:
            value = node.inputs[0]
    if graph.type(value).shape != flat:
        value = build.value("reshape", [value], {"shape": flat})
    if type.dtype != "f32":
        value = build.value("cast", [value], {"dtype": "f32"})
    return value


def _activation(node: Node | None) -> str:
    if node is None:
        return "none"
    if node.op == "clamp":
        return "relu6"
    return gelu_name(node) if node.op == "gelu" else node.op
