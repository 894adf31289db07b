"""Experts of 8-bit floats, because the source is quantised or because it was asked for.

Fuses   moe(x, ...)   into   moe_fp8(quantize(x), codes, scales, ...)   on a GPU
        moe(x, ...)   into   moe_fp8(x, codes, scales, ...)             on a CPU

On a GPU the tokens, and the activated rows between the products, are quantised in groups of as many
elements as a block of the weights has columns, else by token: an input scale that the source gives
is not used, for the rows of an expert are few and their own scales are at least as near.  The 8-bit
float is the target's, as in `quantise`.  On a CPU both stay as they are, and the kernel widens
codes as it multiplies.

Leaves it alone when
  weight    a weight is computed, not stored
  request   a request fits some of the weights, and not others
  scales    the codes were lost on the way, the scales are none that a kernel takes, or those of the
            two products differ
  fp8.arch  the source has 8-bit codes that the target does not multiply
  shape     the inputs of a product are not whole groups that share a scale
  dtype     the tokens are of a type that no kernel takes
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fusec.formats import Scaling, fp8_scaling
from fusec.ir import Attr, Graph, Node
from fusec.ir.types import bool_attr
from fusec.passes.quantise import FLOATS
from fusec.passes.quantised_experts import expert_match, is_of_mxfp4, sizes
from fusec.passes.quantised_weights import (
    for_matrix_units,
    formats,
    has_scales,
    in_few_bits,
    is_asked_as_one,
    is_multiplied,
    is_weight,
    parameter,
    quantised_rows,
    roles,
)
from fusec.rewrite import FusionPass, Guard, Match, Rejection
from fusec.rewrite.driver import Builder
from fusec.target import Target

WHOLE = {"fp8-tensor", "fp8-token"}
"""Formats in which all inputs of an output share a scale."""

LEAST_GROUP = 64
"""Inputs of an output that share a scale, at least: kernels for GPUs multiply as many before they
scale."""


def _scales(match: Match, target: Target) -> Rejection | None:
    held = set(formats(match))
    value = match.values["down"]
    if "mxfp8" in held:
        reason = "experts are multiplied in fp8 or mxfp4, not in mxfp8"
        return Rejection("scales", reason, value, hint="give experts `fp8-block` or `mxfp4`")
    if len(held) > 1 and not held <= WHOLE:
        reason = f"the weights of gate and up are {formats(match)[0]}, of down {formats(match)[1]}"
        return Rejection("scales", reason, value)
    if held == {"fp8-block"} and len(set(_blocks(match))) > 1:
        first, second = ("x".join(map(str, block)) for block in _blocks(match))
        reason = f"scales of gate and up are for each {first}, of down for each {second}"
        return Rejection("scales", reason, value)
    if target.is_gpu and 0 < _group(match) < LEAST_GROUP:
        reason = f"scales are for each {_group(match)} inputs, fewer than {LEAST_GROUP}"
        return Rejection("scales", reason, value)
    return None


def _blocks(match: Match) -> list[tuple[int, int]]:
    """The blocks of both weights, where the source has them."""
    weights = [match.graph.parameters[value] for value in roles(match).values()]
    return [each.quantised.block if each.quantised is not None else (128, 128) for each in weights]


def _group(match: Match) -> int:
    """Elements along the inputs that share a scale; 0 if all of them do."""
    return _blocks(match)[0][1] if formats(match)[0] == "fp8-block" else 0


def _scaling(target: Target, group: int) -> Scaling:
    """How rows are quantised."""
    fp8 = str(target.fp8)
    return fp8_scaling(fp8, "group", group=group) if group else fp8_scaling(fp8, "token")


def _shape(match: Match, target: Target) -> Rejection | None:
    group = _group(match)
    for name, size in zip(("hidden", "intermediate"), sizes(match), strict=True):
        if group and size % group:
            reason = f"{name} {size} is not whole groups of {group} that share a scale"
            return Rejection("shape", reason, match.values["down"])
    return None


def _dtype(match: Match, target: Target) -> Rejection | None:
    x = match.root.inputs[0]
    dtype = match.graph.type(x).dtype
    if dtype in FLOATS:
        return None
    return Rejection("dtype", f"the tokens are {dtype}, not one of {', '.join(FLOATS)}", x)


class MoeFp8(FusionPass):
    """Puts products of codes in the place of experts."""

    name: ClassVar[str] = "moe_fp8"
    fusion: ClassVar[str | None] = "moe_fp8"
    rounds: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("moe", "dense_experts", "loop_experts")
    guards: ClassVar[tuple[Guard, ...]] = (
        is_weight,
        is_asked_as_one,
        has_scales,
        _scales,
        is_multiplied,
        _shape,
        _dtype,
    )

    def anchors(self) -> frozenset[str]:
        """Experts."""
        return frozenset(("moe",))

    def find(self, graph: Graph, node: Node) -> Match | None:
        """Experts whose weights are in 8 bits, or are to be."""
        match = expert_match(graph, node, self.settings)
        return None if match is None or is_of_mxfp4(match) else match

    def details(self, match: Match, target: Target) -> Mapping[str, str | int | float]:
        """The format, and what the rows are quantised to."""
        weight = match.graph.parameters[match.values["down"]]
        x = match.graph.type(match.root.inputs[0])
        hidden, intermediate = sizes(match)
        return {
            "format": max(formats(match)),
            "experts": weight.shape[0],
            "hidden": hidden,
            "intermediate": intermediate,
            "activations": str(target.fp8) if target.is_gpu else x.dtype,
        }

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Quantise the tokens for a GPU, and build the node."""
        graph, node = match.graph, match.root
        group, by_row = _group(match), "fp8-token" in formats(match)
        rows_attrs = _scaling(target, group).attrs() if target.is_gpu else {}
        hidden, intermediate = sizes(match)
        rows = max(hidden, intermediate * (2 if bool_attr(node.attrs, "gated") else 1))
        block = (1 if by_row else rows, max(hidden, intermediate))
        x = node.inputs[0]
        x_rows = quantised_rows(build, x, rows_attrs) if target.is_gpu else [x]
        operands = [*x_rows, *node.inputs[1:3]]
        for role, value in roles(match).items():
            held = in_few_bits(match, role, target)
            codes, scale = for_matrix_units(held, target, by_row=by_row)
            operands += [
                parameter(graph, f"{value}.codes", codes),
                parameter(graph, f"{value}.scale", scale),
            ]
        attrs: dict[str, Attr] = {
            **{name: held for name, held in node.attrs.items() if name != "transposed"},
            **rows_attrs,
            "weight_block": _blocks(match)[0] if group else block,
            "dtype": graph.type(node.output).dtype,
        }
        return {node.output: build.value("moe_fp8", [*operands, *node.inputs[5:]], attrs)}
