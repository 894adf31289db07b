"""gpt-oss's activation: SwiGLU with clamped operands, a factor in the sigmoid, and up + 1.

Fuses   g * sigmoid(alpha * g) * (u + 1)   with   g = min(gate, limit),   u = clamp(up, +-limit)
into    swiglu_oai(gate, up) {alpha, limit}

Leaves it alone when
  length  on a GPU, the elements of a row are counted only when it runs
  limit   the three bounds are not one limit
  shape   gate and up differ in shape
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fusec.passes.facts import known_length, swiglu_limit
from fusec.rewrite import FusionPass, Guard, Match, Number, Op, Rejection, Var
from fusec.rewrite.driver import Builder
from fusec.target import Target

QUICK_GELU_ALPHA = 1.702
CLAMPED_GATE = Op("clamp", (Var("gate"),), name="gate")
CLAMPED_UP = Op("clamp", (Var("up"),), name="up")
SHIFTED = Op("add", (CLAMPED_UP, Number(value=1.0)))
SIGMOID = Op("sigmoid", (Op("mul", (CLAMPED_GATE, Number("alpha"))),))


def _limit(match: Match, target: Target) -> Rejection | None:
    if swiglu_limit(match.nodes["gate"], match.nodes["up"]) is not None:
        return None
    gate, up = (match.nodes[name].attrs for name in ("gate", "up"))
    limit = gate.get("max")
    reason = f"gate is at most {limit}, but up is within {up.get('min')} and {up.get('max')}"
    if gate.get("min") is not None:
        reason = f"gate is bounded from below, by {gate.get('min')}"
    return Rejection("limit", reason, match.nodes["gate"].name)


def _shape(match: Match, target: Target) -> Rejection | None:
    gate, up = (match.graph.type(match.values[name]) for name in ("gate", "up"))
    if gate.shape == up.shape == match.graph.type(match.root.output).shape:
        return None
    return Rejection("shape", f"gate is `{gate}`, but up is `{up}`", match.values["up"])


class SwigluOai(FusionPass):
    """One node for clamps, sigmoid and products."""

    name: ClassVar[str] = "swiglu_oai"
    fusion: ClassVar[str | None] = "swiglu_oai"
    after: ClassVar[tuple[str, ...]] = ("activations",)
    patterns: ClassVar[tuple[Op, ...]] = (
        Op("mul", (SHIFTED, Op(("quick_gelu", "silu"), (CLAMPED_GATE,), name="activation"))),
        Op("mul", (SHIFTED, Op("mul", (CLAMPED_GATE, SIGMOID)))),
    )
    guards: ClassVar[tuple[Guard, ...]] = (_limit, _shape, known_length)

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the activation."""
        alpha = match.numbers.get("alpha", QUICK_GELU_ALPHA)
        if "activation" in match.nodes and match.nodes["activation"].op == "silu":
            alpha = 1.0
        attrs = {"alpha": alpha, "limit": match.nodes["gate"].attrs["max"]}
        inputs = [match.values["gate"], match.values["up"]]
        return {match.root.output: build.value("swiglu_oai", inputs, attrs)}
