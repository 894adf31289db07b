"""The join of a residual stream and the norm that reads it.

Fuses   s = x + residual,   y = rms_norm(s, w)   into   y, s = add_rms_norm(x, residual, w)

The sum stays a result of its own: the next join reads it.  One a join: where two norms read one
sum, the first takes it.

Leaves it alone when
  shape   x and the residual differ in shape, so that one is widened
  dtype   the norm reads the sum in another dtype
  weight  the norm has no weight
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fusec.ir import Attr
from fusec.rewrite import FusionPass, Guard, Match, Op, Rejection, Var
from fusec.rewrite.driver import Builder
from fusec.target import Target

SUM = Op("add", (Var("x"), Var("residual")), name="sum")
WIDENED = Op("cast", (SUM,), name="widened", shared=True)


def _shape(match: Match, target: Target) -> Rejection | None:
    x, residual = (match.graph.type(match.values[name]) for name in ("x", "residual"))
    if x.shape == residual.shape:
        return None
    reason = f"`{x}` and `{residual}` differ in shape"
    return Rejection("shape", reason, match.nodes["sum"].name)


def _dtype(match: Match, target: Target) -> Rejection | None:
    if "widened" not in match.nodes:
        return None
    total, read = (match.graph.type(match.nodes[name].output) for name in ("sum", "widened"))
    reason = f"the sum is {total.dtype}, but the norm reads it in {read.dtype}"
    return Rejection("dtype", reason, match.nodes["widened"].name)


def _weight(match: Match, target: Target) -> Rejection | None:
    if "weight" in match.values:
        return None
    return Rejection("weight", f"`%{match.root.name}` has no weight", match.root.name)


class AddRmsNorm(FusionPass):
    """One node with two results."""

    name: ClassVar[str] = "add_rms_norm"
    fusion: ClassVar[str | None] = "add_rms_norm"
    after: ClassVar[tuple[str, ...]] = ("rms_norm", "gated_rms_norm", "dual_rms_norm")
    patterns: ClassVar[tuple[Op, ...]] = (
        Op("rms_norm", (SUM, Var("weight"))),
        Op("rms_norm", (SUM,)),
        Op("rms_norm", (WIDENED, Var("weight"))),
    )
    guards: ClassVar[tuple[Guard, ...]] = (_shape, _dtype, _weight)

    def outputs(self, match: Match) -> tuple[str, ...]:
        """The normed rows and the sum."""
        return (match.root.output, match.nodes["sum"].output)

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the node."""
        attrs: dict[str, Attr] = {
            "eps": match.root.attrs["eps"],
            "weight_offset": match.root.attrs["weight_offset"],
        }
        inputs = [match.values[name] for name in ("x", "residual", "weight")]
        normed, total = build.node("add_rms_norm", inputs, attrs).outputs
        return {match.root.output: normed, match.nodes["sum"].output: total}
