"""SwiGLU's activation: SiLU of one projection times another.

Fuses   silu(gate) * up   into   silu_mul(gate, up)

A cast to f32 before and back after goes: the operation computes in f32 and rounds once.

Leaves it alone when
  shape  gate and up differ in shape, so that one is a scale and not a projection
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fusec.rewrite import FusionPass, Guard, Match, Op, Rejection, Var
from fusec.rewrite.driver import Builder
from fusec.target import Target

ACTIVATED = Op("silu", (Var("gate"),), name="activation")


def _shape(match: Match, target: Target) -> Rejection | None:
    gate, up = (match.graph.type(match.values[name]) for name in ("gate", "up"))
    if gate.shape == up.shape:
        return None
    return Rejection("shape", f"gate is `{gate}`, but up is `{up}`", match.values["up"])


class SiluMul(FusionPass):
    """One node for an activation and the product with its gate."""

    name: ClassVar[str] = "silu_mul"
    fusion: ClassVar[str | None] = "silu_mul"
    after: ClassVar[tuple[str, ...]] = ("activations", "gated_rms_norm")
    patterns: ClassVar[tuple[Op, ...]] = (Op("mul", (ACTIVATED, Var("up"))),)
    guards: ClassVar[tuple[Guard, ...]] = (_shape,)

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the product."""
        inputs = [match.values["gate"], match.values["up"]]
        attrs = match.nodes["activation"].attrs
        return {match.root.output: build.value("silu_mul", inputs, attrs)}
