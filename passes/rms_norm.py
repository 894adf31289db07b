"""Root-mean-square norm, written out by hand.

Fuses   x * rsqrt(mean(x * x) + eps)   and then   norm * w,   norm * (1 + w)
into    rms_norm(x, w)

Upcasts inside go: the operation accumulates in f32 whatever the dtypes, and the weight may have
another one.  A weight that is applied after the norm was rounded is applied before the rounding
instead; with two weights it becomes two norms, each of which may fuse with what is around it.
A norm of rows that an axis was put between for it, as of one group, is one of the rows.
`x / sqrt(...)`, `pow(x, 2)` and the like are made alike by `canonicalise`.

Leaves it alone when
  axis    the mean is not over the last axis alone
  weight  the factor is not one number for each element of a row
  dtype   the mean is taken in fewer bits, or the result is rounded to another dtype, than x has
  length  on a GPU, the elements of a row are counted only when it runs
  shape   a constant on the way widens x, or a row is normed in several groups
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fusec.ir import Attr
from fusec.passes.facts import (
    before_widening,
    keeps_dtype,
    keeps_shape,
    known_length,
    mean_of_rows,
    weighs_columns,
    with_cast,
)
from fusec.rewrite import FusionPass, Guard, Match, Maybe, Number, Op, Rejection, Var
from fusec.rewrite.driver import Builder
from fusec.target import Target

X, WEIGHT = Var("x"), Var("weight")
SQUARE = Op("mul", (Maybe("cast", X), Maybe("cast", X)))
MEAN = Op("reduce_mean", (SQUARE,), name="mean")
INVERSE = Op("rsqrt", (Op("add", (MEAN, Number("eps"))),))
OFFSET = Op("add", (WEIGHT, Number("offset", 1.0)), shared=True)
NORM = Op("rms_norm", (X,), name="norm", attrs={"has_weight": False}, shared=True)
NORMS = (NORM, Op("cast", (NORM,), shared=True))
WIDENED = Op("cast", (X,), shared=True)


def _dtype(match: Match, target: Target) -> Rejection | None:
    mean = match.nodes.get("mean")
    if mean is None:
        return keeps_dtype(match, target)
    x, taken = (match.graph.type(value) for value in (match.values["x"], mean.output))
    if taken.element.bits >= x.element.bits:
        return None
    return Rejection("dtype", f"the mean of {x.dtype} is taken in {taken.dtype}", mean.name)


def _one_group(match: Match, target: Target) -> Rejection | None:
    if match.root.op != "reshape":
        return None
    norm = match.nodes["norm"]
    x, rows = (match.graph.type(value) for value in (norm.output, match.root.output))
    if x.shape[-1] == rows.shape[-1]:
        return None
    return Rejection("shape", f"rows of `{rows}` are normed in groups, as `{x}`", match.root.name)


class RmsNorm(FusionPass):
    """First the norm alone, then its weight, then the casts around it."""

    name: ClassVar[str] = "rms_norm"
    after: ClassVar[tuple[str, ...]] = ("canonicalise",)
    patterns: ClassVar[tuple[Op, ...]] = (
        *(Op("mul", (X, inverse)) for inverse in with_cast(INVERSE)),
        Op("reshape", (Op("rms_norm", (Op("reshape", (X,)),), name="norm"),)),
        *(Op("mul", (norm, OFFSET)) for norm in NORMS),
        *(Op("mul", (norm, WEIGHT)) for norm in NORMS),
        Op("cast", (Op("rms_norm", (WIDENED,), name="norm"),)),
        Op("cast", (Op("rms_norm", (WIDENED, WEIGHT), name="norm"),)),
    )
    guards: ClassVar[tuple[Guard, ...]] = (
        mean_of_rows,
        weighs_columns,
        _dtype,
        keeps_shape,
        known_length,
        _one_group,
    )

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the norm, and a cast where the product had another dtype than x."""
        graph, root, x = match.graph, match.root, match.values["x"]
        norm = match.nodes.get("norm")
        attrs: dict[str, Attr] = {"has_weight": False, "weight_offset": 0}
        if norm is None:
            attrs["eps"] = match.numbers["eps"]
        else:
            attrs.update(norm.attrs)
        inputs = [x]
        if "weight" in match.values:
            inputs.append(before_widening(graph, match.values["weight"]))
            attrs["has_weight"] = True
        if "offset" in match.numbers:
            attrs["weight_offset"] = 1
        value = build.value("rms_norm", inputs, attrs)
        wanted = graph.type(root.output).dtype
        if graph.type(value).dtype != wanted:
            value = build.value("cast", [value], {"dtype": wanted})
        return {root.output: value}
