"""Layer norm, written out by hand.

Fuses   rms_norm(x - mean(x), w)   and then   norm * w,   norm + b
into    layer_norm(x, w, b)

The pass `rms_norm` has seen the part that both norms share.  Upcasts inside go, as they do there.

Leaves it alone when
  axis    the mean is not over the last axis alone
  weight  the factor or the addend is not one number for each element of a row
  offset  the weight is 1 + w
  dtype   the result is rounded to another dtype than that of x
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fusec.ir import Attr
from fusec.passes.facts import (
    before_widening,
    keeps_dtype,
    mean_of_rows,
    weighs_columns,
    with_cast,
)
from fusec.rewrite import FusionPass, Guard, Match, Maybe, Op, Rejection, Var
from fusec.rewrite.driver import Builder
from fusec.target import Target

X, WEIGHT, BIAS = Var("x"), Var("weight"), Var("bias")
MEAN = Op("reduce_mean", (Maybe("cast", X),), name="mean")
CENTRED = Op("sub", (X, MEAN))
PLAIN = {"has_weight": False, "has_bias": False}
NORM = Op("layer_norm", (X,), name="norm", attrs=PLAIN)
SCALED = Op("layer_norm", (X, WEIGHT), name="norm", attrs={**PLAIN, "has_weight": True})
SHIFTED = Op("layer_norm", (X, WEIGHT, BIAS), name="norm")
WIDENED = Op("cast", (X,), shared=True)


def _offset(match: Match, target: Target) -> Rejection | None:
    norm = match.nodes.get("norm")
    if norm is None or norm.attrs.get("weight_offset", 0) == 0:
        return None
    return Rejection("offset", f"`%{norm.name}` multiplies by 1 + weight", norm.name)


class LayerNorm(FusionPass):
    """First the norm alone, then its weight and bias, then the casts around it."""

    name: ClassVar[str] = "layer_norm"
    after: ClassVar[tuple[str, ...]] = ("canonicalise", "rms_norm")
    patterns: ClassVar[tuple[Op, ...]] = (
        Op("rms_norm", (CENTRED,), name="norm"),
        Op("rms_norm", (CENTRED, WEIGHT), name="norm"),
        *(Op("mul", (norm, WEIGHT)) for norm in with_cast(NORM)),
        *(Op("add", (norm, BIAS)) for norm in with_cast(SCALED)),
        *(
            Op("cast", (Op("layer_norm", (WIDENED, *rest), name="norm"),))
            for rest in (
                (),
                (WEIGHT,),
                (WEIGHT, BIAS),
            )
        ),
    )
    guards: ClassVar[tuple[Guard, ...]] = (
        mean_of_rows,
        weighs_columns,
        _offset,
        keeps_dtype,
    )

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the norm, and a cast where its reader had another dtype than x."""
        graph, root = match.graph, match.root
        inputs = [match.values["x"]]
        for name in ("weight", "bias"):
            if name in match.values:
                inputs.append(before_widening(graph, match.values[name]))
        attrs: dict[str, Attr] = {
            "eps": match.nodes["norm"].attrs["eps"],
            "has_weight": "weight" in match.values,
            "has_bias": "bias" in match.values,
        }
        value = build.value("layer_norm", inputs, attrs)
        wanted = graph.type(root.output).dtype
        if graph.type(value).dtype != wanted:
            value = build.value("cast", [value], {"dtype": wanted})
        return {root.output: value}
