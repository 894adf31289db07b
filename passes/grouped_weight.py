"""Weights of grouped products that are read turned, turned when the artifact is written instead.

Fuses   grouped_mm(x, transpose(w), offsets)   into   grouped_mm(x, w^T, offsets)

Experts that were recognised are one `moe` by now; this is for those that were not.

Leaves it alone when
  weight  what is turned is not a weight
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from fusec.ir.types import TensorType
from fusec.ir.weights import Bits
from fusec.rewrite import FusionPass, Guard, Match, Op, Rejection, Var
from fusec.rewrite.driver import Builder
from fusec.target import Target

TURNED = Op("transpose", (Var("weight"),), attrs={"perm": (0, 2, 1)}, shared=True)


def _weight(match: Match, target: Target) -> Rejection | None:
    weight = match.values["weight"]
    if weight in match.graph.parameters:
        return None
    return Rejection("weight", f"`%{weight}` is computed at run time", weight)


class GroupedWeight(FusionPass):
    """A weight in the order in which a grouped product reads it."""

    name: ClassVar[str] = "grouped_weight"
    after: ClassVar[tuple[str, ...]] = ("moe", "dense_experts")
    patterns: ClassVar[tuple[Op, ...]] = (Op("grouped_mm", (Var("x"), TURNED, Var("offsets"))),)
    guards: ClassVar[tuple[Guard, ...]] = (_weight,)

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the product with a derived weight."""
        value = match.values["weight"]
        weight = match.graph.parameters[value]
        groups, rows, columns = weight.shape

        def turn(bits: Bits) -> Bits:
            return np.ascontiguousarray(bits.swapaxes(1, 2))

        kind = TensorType(weight.type.dtype, (groups, columns, rows))
        turned = weight.derive(f"{weight.name}^T", kind, "transpose", turn)
        made = match.graph.add_parameter(match.graph.fresh(f"{value}_t"), turned)
        inputs = [match.values["x"], made, match.values["offsets"]]
        return {match.root.output: build.value("grouped_mm", inputs)}
