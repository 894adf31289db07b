"""What `moe_mxfp4_native` and `moe_mxfp4_dequant` share: they differ in how the tokens come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fusec.formats import MX_GROUP, Scaling, mx_scaling
from fusec.ir import Attr, Attrs, Graph, Node
from fusec.ir.types import bool_attr, str_attr
from fusec.ir.weights import Weight
from fusec.passes.mxfp4_layout import (
    ALIGNMENT,
    aligned,
    alternating,
    padded,
    padded_codes,
    up_to,
)
from fusec.passes.quantised_experts import expert_match, is_of_mxfp4, sizes
from fusec.passes.quantised_weights import (
    formats,
    has_scales,
    in_few_bits,
    is_asked_as_one,
    is_weight,
    parameter,
    quantised_rows,
    roles,
)
from fusec.rewrite import FusionPass, Guard, Match, Rejection
from fusec.rewrite.driver import Builder
from fusec.target import Target

NARROW = ("bf16", "f16")
FLOATS = ("f32", *NARROW)
ACTIVATION_SCALING = mx_scaling("f8e4m3fn", "even")
"""How tokens are quantised for scaled matrix units: the rounding is that of Quark."""


def _scales(match: Match, target: Target) -> Rejection | None:
    if set(formats(match)) == {"mxfp4"}:
        return None
    first, second = formats(match)
    reason = f"the weights of gate and up are {first}, of down {second}"
    return Rejection("scales", reason, match.values["down"])


def _bias(match: Match, target: Target) -> Rejection | None:
    for value in match.root.inputs[5:]:
        if value not in match.graph.parameters:
            return Rejection("weight", f"`%{value}` is computed, not a weight", value)
    return None


def _activation(match: Match, target: Target) -> Rejection | None:
    attrs, at = match.root.attrs, match.root.name
    if bool_attr(attrs, "gated") or not target.is_gpu:
        return None
    reason = f"the experts have no gate, only `{str_attr(attrs, 'activation')}`"
    return Rejection("activation", reason, at)


def _dtype(match: Match, target: Target) -> Rejection | None:
    x = match.root.inputs[0]
    dtype = match.graph.type(x).dtype
    wanted = NARROW if target.is_gpu else FLOATS
    if dtype in wanted:
        return None
    return Rejection("dtype", f"the tokens are {dtype}, not one of {', '.join(wanted)}", x)


def _shape(match: Match, target: Target) -> Rejection | None:
    for name, size in zip(("hidden", "intermediate"), sizes(match), strict=True):
        if size % MX_GROUP:
            reason = f"{name} {size} is not whole groups of {MX_GROUP} that share a scale"
            return Rejection("shape", reason, match.values["down"])
    return None


GUARDS: tuple[Guard, ...] = (
    is_weight,
    is_asked_as_one,
    has_scales,
    _scales,
    _bias,
    _shape,
    _activation,
    _dtype,
)
"""What holds of experts of 4-bit floats on any target."""


class Mxfp4Experts(FusionPass):
    """Puts `moe_mxfp4` in the place of experts."""

    after: ClassVar[tuple[str, ...]] = ("moe", "dense_experts", "loop_experts", "moe_fp8")
    scaling: ClassVar[Scaling | None] = None
    """How the tokens are quantised, if they are."""

    def anchors(self) -> frozenset[str]:
        """Experts."""
        return frozenset(("moe",))

    def find(self, graph: Graph, node: Node) -> Match | None:
        """Experts whose weights are in 4 bits, or are to be."""
        match = expert_match(graph, node, self.settings)
        if match is None or not is_of_mxfp4(match):
            return None
        facts: Attrs = {
            **match.facts,
            "pads": self.settings.mxfp4_align == "pad",
            "dtype": graph.type(node.inputs[0]).dtype,
        }
        return Match(graph, node, match.values, inner=match.inner, facts=facts)

    def details(self, match: Match, target: Target) -> Mapping[str, str | int | float]:
        """Sizes and how far they are padded, and what is multiplied."""
        (hidden, intermediate), step = sizes(match), _step(match, target)
        scaled = self.scaling is not None
        found: dict[str, str | int | float] = {
            "how": "scaled MFMA" if scaled else f"dequantises to {match.facts['dtype']}",
            "experts": match.graph.parameters[match.values["down"]].shape[0],
            "hidden": hidden,
            "hidden_pad": up_to(hidden, step) - hidden,
            "intermediate": intermediate,
            "intermediate_pad": up_to(intermediate, step) - intermediate,
            "activations": "mxfp8" if scaled else str(match.facts["dtype"]),
        }
        if self.scaling is not None:
            found["scale_rounding"] = self.scaling.rounding
        return found

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Put the weights in order, pad them, and build the node."""
        graph, node, scaling = match.graph, match.root, self.scaling
        (hidden, intermediate), step = sizes(match), _step(match, target)
        layout = node.attrs["gate_up_layout"]
        split = target.is_gpu and layout == "split"
        x, weights, experts, _, _, *biases = node.inputs
        rows = [x] if scaling is None else quantised_rows(build, x, scaling.attrs())
        operands = [*rows, weights, experts]
        for role, value in roles(match).items():
            held = in_few_bits(match, role, target)
            parts = [held.codes, held.scale]
            if role == "gate_up" and split:
                parts = [alternating(part) for part in parts]
            codes, scale = padded_codes(
                parts[0], parts[1], step * (2 if role == "gate_up" else 1), step
            )
            operands += [
                parameter(graph, f"{value}.codes", codes),
                parameter(graph, f"{value}.scale", scale),
            ]
        wide = (2 * up_to(intermediate, step), up_to(hidden, step))
        for position, value in enumerate(biases):
            bias: Weight = graph.parameters[value]
            if position == 0 and split:
                bias = alternating(bias)
            bias = padded(bias, (bias.shape[0], wide[position]))
            operands.append(parameter(graph, f"{value}.padded", bias))
        attrs: dict[str, Attr] = {
            **{name: held for name, held in node.attrs.items() if name != "transposed"},
            **({} if scaling is None else scaling.attrs()),
            "gate_up_layout": "interleaved" if target.is_gpu else layout,
            "has_x_scale": scaling is not None,
            "hidden_pad": up_to(hidden, step) - hidden,
            "intermediate_pad": up_to(intermediate, step) - intermediate,
            "dtype": graph.type(node.output).dtype,
        }
        return {node.output: build.value("moe_mxfp4", operands, attrs)}


def _step(match: Match, target: Target) -> int:
    """What sizes are multiples of in memory."""
    return ALIGNMENT if target.is_gpu and match.facts["pads"] is True else 1


def is_aligned(match: Match, target: Target) -> Rejection | None:
    """Guard: scaled matrix units take the weights as they lie in memory."""
    hidden, intermediate = sizes(match)
    if match.facts["pads"] is True or aligned(hidden, intermediate):
        return None
    reason = f"hidden {hidden} and intermediate {intermediate} are not multiples of {ALIGNMENT}"
    return Rejection("mxfp4.align", reason, match.values["down"])


def has_scaled_units(match: Match, target: Target) -> Rejection | None:
    """Guard: the target has matrix units that take block-scaled 4-bit floats."""
    if target.native_mxfp4:
        return None
    reason = f"native scaled MFMA needs gfx950; this is {target.name}"
    return Rejection("mxfp4.arch", reason, match.root.name)
