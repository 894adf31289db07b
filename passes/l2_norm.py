"""Division of rows by their Euclidean length, written out by hand.

Fuses   x * rsqrt(sum(x * x) + eps)                      into   l2_norm(x) {mode = "add"}
        x / max(sqrt(sum(x * x)), eps), or a clamp       into   l2_norm(x) {mode = "max"}

Upcasts inside go: the operation accumulates in f32.

Leaves it alone when
  axis    the sum is not over the last axis alone
  bound   the length is bounded from above as well
  dtype   the result is rounded to another dtype than that of x
  length  on a GPU, the elements of a row are counted only when it runs
  shape   a constant on the way widens x
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fusec.ir import Attr
from fusec.passes.facts import keeps_dtype, keeps_shape, known_length, reduces_rows, with_cast
from fusec.rewrite import FusionPass, Guard, Match, Maybe, Number, Op, Rejection, Var
from fusec.rewrite.driver import Builder
from fusec.target import Target

X = Var("x")
SQUARE = Op("mul", (Maybe("cast", X), Maybe("cast", X)))
SUM = Op("reduce_sum", (SQUARE,), name="sum")
INVERSE = Op("rsqrt", (Op("add", (SUM, Number("eps"))),))
LENGTH = Op("sqrt", (SUM,))
WIDENED = Op("cast", (X,), shared=True)


def _axis(match: Match, target: Target) -> Rejection | None:
    total = match.nodes.get("sum")
    if total is None or reduces_rows(match.graph, total):
        return None
    return Rejection("axis", f"`%{total.name}` is not a sum over the last axis alone", total.name)


def _bound(match: Match, target: Target) -> Rejection | None:
    clamp = match.nodes.get("clamp")
    if clamp is None or (clamp.attrs.get("max") is None and clamp.attrs.get("min") is not None):
        return None
    return Rejection("bound", f"`%{clamp.name}` bounds the length from above", clamp.name)


class L2Norm(FusionPass):
    """First the norm, then the casts around it."""

    name: ClassVar[str] = "l2_norm"
    after: ClassVar[tuple[str, ...]] = ("canonicalise",)
    patterns: ClassVar[tuple[Op, ...]] = (
        *(Op("mul", (X, inverse)) for inverse in with_cast(INVERSE)),
        *(
            Op("div", (X, length))
            for bounded in (
                Op("clamp", (LENGTH,), name="clamp"),
                Op("maximum", (LENGTH, Number("eps"))),
            )
            for length in with_cast(bounded)
        ),
        Op("cast", (Op("l2_norm", (WIDENED,), name="norm"),)),
    )
    guards: ClassVar[tuple[Guard, ...]] = (
        _axis,
        _bound,
        keeps_dtype,
        keeps_shape,
        known_length,
    )

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the norm."""
        attrs: dict[str, Attr] = {"mode": "add" if match.root.op == "mul" else "max"}
        if "norm" in match.nodes:
            attrs.update(match.nodes["norm"].attrs)
        elif "clamp" in match.nodes:
            attrs["eps"] = match.nodes["clamp"].attrs["min"]
        else:
            attrs["eps"] = match.numbers["eps"]
        return {match.root.output: build.value("l2_norm", [match.values["x"]], attrs)}
