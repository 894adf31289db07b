"""A product with a weight, as one operation with the weight's rows as outputs.

Fuses   matmul(x, w),   matmul(x, transpose(w)),   linear(x, w) + b   into   linear(x, w, b)

The weight of a matmul is transposed when the artifact is written.

Leaves it alone when
  weight  the matrix is not a weight, or is no matrix
  shared  the weight has another reader, which needs it as it is
  bias    the addend is not one number of the same dtype for each output
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from fusec.ir.types import TensorType
from fusec.ir.weights import Bits, Weight
from fusec.rewrite import FusionPass, Guard, Match, Op, Rejection, Var
from fusec.rewrite.driver import Builder
from fusec.target import Target

X, WEIGHT, BIAS = Var("x"), Var("weight"), Var("bias")
TURNED = Op("transpose", (WEIGHT,), name="turn", attrs={"perm": (1, 0)}, shared=True)


def _weight(match: Match, target: Target) -> Rejection | None:
    weight = match.values["weight"]
    if match.root.op != "matmul" or "turn" in match.nodes:
        return None
    if weight in match.graph.parameters and match.graph.type(weight).rank == 2:
        return None
    return Rejection("weight", f"`%{weight}` is not a weight of rank 2", weight)


def _shared(match: Match, target: Target) -> Rejection | None:
    weight = match.values["weight"]
    if match.root.op != "matmul" or "turn" in match.nodes or match.graph.use_count(weight) == 1:
        return None
    return Rejection("shared", f"`%{weight}` has another reader", weight)


def _bias(match: Match, target: Target) -> Rejection | None:
    if "bias" not in match.values:
        return None
    bias, result = match.values["bias"], match.graph.type(match.root.output)
    kind = match.graph.type(bias)
    if kind.shape == result.shape[-1:] and result.rank > 1 and kind.dtype == result.dtype:
        return None
    return Rejection("bias", f"`{kind}` is not one number for each output of `{result}`", bias)


class Linear(FusionPass):
    """First the product, then its bias."""

    name: ClassVar[str] = "linear"
    after: ClassVar[tuple[str, ...]] = ("canonicalise",)
    patterns: ClassVar[tuple[Op, ...]] = (
        Op("matmul", (X, TURNED)),
        Op("matmul", (X, WEIGHT)),
        Op("add", (Op("linear", (X, WEIGHT)), BIAS)),
    )
    guards: ClassVar[tuple[Guard, ...]] = (_weight, _shared, _bias)

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the product; its weight is turned unless it was read turned already."""
        graph, weight = match.graph, match.values["weight"]
        inputs = [match.values["x"], weight]
        if match.root.op == "matmul" and "turn" not in match.nodes:
            turned = _transposed(graph.parameters[weight])
            inputs[1] = graph.add_parameter(graph.fresh(f"{weight}_t"), turned)
        if "bias" in match.values:
            inputs.append(match.values["bias"])
        return {match.root.output: build.value("linear", inputs)}


def _transposed(weight: Weight) -> Weight:
    rows, columns = weight.shape
    kind = TensorType(weight.type.dtype, (columns, rows))

    def turn(bits: Bits) -> Bits:
        return np.ascontiguousarray(bits.T)

    return weight.derive(f"{weight.name}^T", kind, "transpose", turn)
