"""What follows a product with a weight: an activation, or the join of a residual stream.

Fuses   silu, gelu, quick_gelu or relu of linear(x, w [, b])   and   linear(x, w [, b]) + residual
into    linear_epilogue(x, w [, b] [, residual]) {activation}

The kernel has the sums in registers: it applies the activation or adds the residual in f32, rounds
once, and nothing is written in between.  A join that a norm reads is better fused with that norm,
so this pass takes what the passes for norms leave.

Leaves it alone when
  dtype   the operands are of a dtype that the matrix units do not take
  shape   the residual is widened, or widens the product
  weight  the size of the weight is not known at compile time; on a CPU, whose kernels read weights
          in an order of their own, the weight is computed at run time
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fusec.ir import Attr, Node
from fusec.passes.facts import gelu_name, residual_keeps_shape
from fusec.rewrite import FusionPass, Guard, Match, Op, Rejection, Var
from fusec.rewrite.driver import Builder
from fusec.target import Target

ACTIVATIONS = ("silu", "gelu", "quick_gelu", "relu")
DTYPES = ("bf16", "f16", "f32")

_PRODUCTS = (
    Op("linear", (Var("x"), Var("w"), Var("b")), name="product"),
    Op("linear", (Var("x"), Var("w")), name="product"),
)


def _dtype(match: Match, target: Target) -> Rejection | None:
    x = match.graph.type(match.values["x"])
    if x.dtype in DTYPES:
        return None
    return Rejection("dtype", f"the product is of {x.dtype}", match.nodes["product"].name)


def _weight(match: Match, target: Target) -> Rejection | None:
    if not target.is_gpu and match.values["w"] not in match.graph.parameters:
        reason = f"`%{match.values['w']}` is computed, not a weight"
        return Rejection("weight", reason, match.values["w"])
    weight = match.graph.type(match.values["w"])
    if all(isinstance(size, int) for size in weight.shape):
        return None
    return Rejection("weight", f"the weight is `{weight}`", match.values["w"])


class LinearEpilogue(FusionPass):
    """One node for a product and what follows it."""

    name: ClassVar[str] = "linear_epilogue"
    fusion: ClassVar[str | None] = "linear_epilogue"
    after: ClassVar[tuple[str, ...]] = (
        "activations",
        "wide_linear",
        "quantise",
        "linear_glu",
        "silu_mul",
        "gelu_mul",
        "add_rms_norm",
        "add_rms_norm_quant",
    )
    patterns: ClassVar[tuple[Op, ...]] = (
        *(Op(ACTIVATIONS, (product,)) for product in _PRODUCTS),
        *(Op("add", (product, Var("residual"))) for product in _PRODUCTS),
    )
    guards: ClassVar[tuple[Guard, ...]] = (_dtype, residual_keeps_shape, _weight)
    beside: ClassVar[tuple[str, ...]] = ("quantise", "merge_qkv", "merge_gate_up")

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the node."""
        linear = match.nodes["product"]
        attrs: dict[str, Attr] = {
            **linear.attrs,
            "activation": _activation(match.root),
            "has_bias": "b" in match.values,
            "has_residual": "residual" in match.values,
        }
        residual = [match.values["residual"]] if "residual" in match.values else []
        value = build.value("linear_epilogue", [*linear.inputs, *residual], attrs)
        return {match.root.output: value}


def _activation(root: Node) -> str:
    """The activation of the fused node, by the name that experts have it under as well."""
    if root.op == "add":
        return "none"
    return gelu_name(root) if root.op == "gelu" else root.op
