"""Activations, written out by hand.

Fuses   x * sigmoid(x),   x / (1 + exp(-x))                  into   silu(x)
        1 / (1 + exp(-x))                                    into   sigmoid(x)
        x * sigmoid(1.702 * x)                               into   quick_gelu(x)
        x * 0.5 * (1 + erf(x / sqrt(2)))                     into   gelu(x) {approximate = "none"}
        x * 0.5 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))   into   gelu(x) {"tanh"}

in whatever order the factors come.  A cast to f32 before and back after goes: an operation on
elements computes in f32 and rounds once.

Leaves it alone when
  dtype  the casts around an activation differ in dtype
  shape  a constant on the way widens x
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar

from fusec.passes.facts import keeps_dtype, keeps_shape, with_cast
from fusec.rewrite import FusionPass, Guard, Match, Maybe, Number, Op, Pattern, Var
from fusec.rewrite.driver import Builder
from fusec.target import Target

ACTIVATIONS = ("silu", "gelu", "quick_gelu", "sigmoid", "relu", "tanh", "softplus")
X = Var("x")


def _times(a: Pattern, b: Pattern, c: Pattern, name: str | None = None) -> Iterator[Op]:
    """The ways to write a product of three."""
    for first, second, last in ((a, b, c), (b, c, a), (a, c, b)):
        yield Op("mul", (Op("mul", (first, second)), last), name)


def _gelu() -> Iterator[Op]:
    half, one = Number(value=0.5), Number(value=1.0)
    exact = Op("erf", (Op("mul", (X, Number(value=math.sqrt(0.5)))),))
    inside: list[tuple[str, Pattern]] = [("none", exact)]
    inside += [("tanh", Op("tanh", (each,))) for each in _tanh_arguments()]
    for approximate, curve in inside:
        yield from _times(X, half, Op("add", (curve, one)), f"gelu {approximate}")


def _tanh_arguments() -> Iterator[Op]:
    root, small, one = Number(value=math.sqrt(2 / math.pi)), Number(value=0.044715), Number(value=1)
    square = Op("mul", (X, X))
    for cube in (
        Op("mul", (Op("mul", (square, X)), small)),
        Op("mul", (Op("mul", (Op("mul", (X, small)), X)), X)),
        Op("mul", (Op("mul", (square, small)), X)),
    ):
        yield Op("mul", (Op("add", (X, cube)), root))
    for part in (Op("mul", (square, small)), Op("mul", (Op("mul", (X, small)), X))):
        yield from _times(X, root, Op("add", (part, one)))


_EXPONENTIAL = Op("add", (Op("exp", (Op("neg", (X,)),)), Number(value=1.0)))
_SCALED = Op("sigmoid", (Op("mul", (X, Number(value=1.702))),))
FORMS: tuple[Op, ...] = (
    *(Op("mul", (X, gate), "silu") for gate in with_cast(Op("sigmoid", (Maybe("cast", X),)))),
    Op("div", (X, _EXPONENTIAL), "silu"),
    Op("reciprocal", (_EXPONENTIAL,), "sigmoid"),
    Op("mul", (X, _SCALED), "quick_gelu"),
    *_gelu(),
)
"""Each root is named after the activation it is, and its attribute if it has one."""


class Activations(FusionPass):
    """Tries every form in turn; then takes the casts around an activation away."""

    name: ClassVar[str] = "activations"
    after: ClassVar[tuple[str, ...]] = ("canonicalise",)
    patterns: ClassVar[tuple[Op, ...]] = (
        *FORMS,
        Op("cast", (Op(ACTIVATIONS, (Op("cast", (X,), shared=True),), name="activation"),)),
    )
    guards: ClassVar[tuple[Guard, ...]] = (keeps_dtype, keeps_shape)

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the activation."""
        if (seen := match.nodes.get("activation")) is not None:
            value = build.value(seen.op, [match.values["x"]], seen.attrs)
            return {match.root.output: value}
        (name,) = match.nodes
        op, _, approximate = name.partition(" ")
        attrs = {"approximate": approximate} if approximate else {}
        return {match.root.output: build.value(op, [match.values["x"]], attrs)}
