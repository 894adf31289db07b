"""Weights that are in few bits, or are to be: what `quantise` and the passes over experts share.

The formats are those of `--quantize`.  A match of these passes has, beside its values, the facts
`roles` (the names of its weights among the values), `formats` (a format for each of them, or one of
`NONE`, `MIXED`, `LOST` and `UNKNOWN`) and `turned` (whether the weights are [..., K, N]).
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import cast

import numpy as np

from fusec.formats import MX_GROUP, decode, fn_to_fnuz
from fusec.ir import Attr, Attrs, Graph
from fusec.ir.quantise_weights import WeightFormat, quantised_weight
from fusec.ir.types import bool_attr
from fusec.ir.weights import Bits, Quantised, Weight, finer, has_lost_codes
from fusec.rewrite import Match, QuantRequest, Rejection, Settings
from fusec.rewrite.driver import Builder
from fusec.target import Target

NONE = ""
MIXED = "mixed"
"""A request fits some of the weights that a weight was joined from, and not others."""
LOST = "lost"
"""The source holds the weight in few bits, but what was made of it since has plain values only."""
UNKNOWN = "unknown"
"""The source holds the weight in few bits, with scales that no kernel takes."""

GROUPS = (32, 64, 128)
"""Elements along K that share a scale, where not all do: rows are quantised in the same groups."""


def format_of(
    graph: Graph, value: str, settings: Settings, *, experts: bool, left_alone: bool = False
) -> str:
    """The format in which `value` is held or wanted; `NONE` for one that stays as it is.

    Args:
        graph: where.
        value: a weight, or a computed value in the place of one.
        settings: what was asked for.
        experts: whether it is the weights of routed experts.
        left_alone: whether a request without a pattern leaves it as it is.
    """
    weight = graph.parameters.get(value)
    if weight is not None and weight.quantised is not None:
        return _held_as(weight.quantised)
    for request in settings.quantise:
        fits = _fits(request, weight, experts=experts, left_alone=left_alone)
        if fits is None:
            return MIXED
        if fits:
            return request.format
    return LOST if weight is not None and has_lost_codes(weight) else NONE


def _held_as(quantised: Quantised) -> str:
    rows, columns = quantised.block
    outputs, length = quantised.values_shape[-2:]
    dtype = quantised.codes.type.dtype
    if quantised.scale.type.dtype == "e8m0" and quantised.block == (1, MX_GROUP):
        return {"f4e2m1x2": "mxfp4", "f8e4m3fn": "mxfp8"}.get(dtype, UNKNOWN)
    if dtype == "f4e2m1x2":
        return UNKNOWN
    if columns >= length:
        return "fp8-tensor" if rows >= outputs else "fp8-token"
    return "fp8-block" if columns in GROUPS else UNKNOWN


def _fits(
    request: QuantRequest, weight: Weight | None, *, experts: bool, left_alone: bool
) -> bool | None:
    """Whether `request` is for this weight; `None` if it is for a part of it."""
    if request.pattern == "*":
        return not left_alone
    if request.pattern == "experts":
        return experts
    if weight is None:
        return False
    if "+" not in weight.name and fnmatchcase(weight.name, request.pattern):
        return True  # one that was joined goes by the names of its parts
    hits = {fnmatchcase(name, request.pattern) for name in weight.made_from}
    return None if len(hits) == 2 else hits == {True}


def weight_facts(roles: Iterable[str], formats: Iterable[str], *, turned: bool) -> Attrs:
    """The facts that the guards below read."""
    return {"roles": tuple(roles), "formats": tuple(formats), "turned": turned}


def roles(match: Match) -> dict[str, str]:
    """The values of the weights, by role."""
    names = cast(tuple[str, ...], match.facts["roles"])
    return {name: match.values[name] for name in names}


def formats(match: Match) -> tuple[str, ...]:
    """The formats of the weights, in the order of their roles."""
    return cast(tuple[str, ...], match.facts["formats"])


# --- guards ---------------------------------------------------------------------------------


def is_weight(match: Match, target: Target) -> Rejection | None:
    """Guard: the weights come with the model."""
    for value in roles(match).values():
        if value not in match.graph.parameters:
            return Rejection("weight", f"`%{value}` is computed, not a weight", value)
    return None


def is_asked_as_one(match: Match, target: Target) -> Rejection | None:
    """Guard: one format is asked for, for all of what is one weight or one node by now."""
    named = dict(zip(roles(match).values(), formats(match), strict=True))
    for value, format in named.items():
        if format == MIXED:
            parts = match.graph.parameters[value].made_from
            reason = f"a request fits `{parts[0]}` or what it was joined with, but not both"
            return Rejection("request", reason, value)
    plain = [value for value, format in named.items() if format == NONE]
    if plain:
        others = ", ".join(sorted({format for format in named.values() if format != NONE}))
        reason = f"`%{plain[0]}` is to stay as it is, the weight beside it is {others}"
        return Rejection("request", reason, plain[0])
    return None


def has_scales(match: Match, target: Target) -> Rejection | None:
    """Guard: codes and scales are at hand, lie along the product, and a kernel takes them."""
    for value, format in zip(roles(match).values(), formats(match), strict=True):
        weight = match.graph.parameters[value]
        if format == LOST:
            steps = weight.packing.partition(", ")[2] or weight.packing
            reason = f"the codes of `%{value}` were lost: its values were changed ({steps})"
            return Rejection("scales", reason, value)
        held = weight.quantised
        if held is None:
            continue
        if format == UNKNOWN:
            rows, columns = held.block
            reason = (
                f"`%{value}` is {held.codes.type.dtype} with {held.scale.type.dtype} scales for "
                f"each {rows}x{columns}, which no kernel takes"
            )
            return Rejection("scales", reason, value)
        if held.turned != bool_attr(match.facts, "turned"):
            return Rejection("scales", f"the scales of `%{value}` lie across the product", value)
    return None


def is_multiplied(match: Match, target: Target) -> Rejection | None:
    """Guard: the matrix units of the target take 8-bit codes such as the source has."""
    for value, format in zip(roles(match).values(), formats(match), strict=True):
        held = match.graph.parameters[value].quantised
        if format.startswith("fp8") and held is not None:
            dtype = held.codes.type.dtype
            if dtype not in (target.fp8, "f8e4m3fn"):
                multiplied = target.fp8 or "f8e4m3fn"
                reason = f"`%{value}` is {dtype}, and {target.name} multiplies {multiplied}"
                return Rejection("fp8.arch", reason, value)
    return None


# --- what is built --------------------------------------------------------------------------


def in_few_bits(match: Match, role: str, target: Target) -> Quantised:
    """The codes and scales of a weight: those of the source, or else made of its values."""
    weight = match.graph.parameters[roles(match)[role]]
    if weight.quantised is not None:
        return weight.quantised
    format = dict(zip(roles(match), formats(match), strict=True))[role]
    turned = bool_attr(match.facts, "turned")
    fp8 = target.fp8 or "f8e4m3fn"
    return quantised_weight(weight, cast(WeightFormat, format), fp8, turned=turned)


def for_matrix_units(
    quantised: Quantised, target: Target, *, by_row: bool = False
) -> tuple[Weight, Weight]:
    """Codes that `target` multiplies, and their f32 scales, with `by_row` one for each row.

    Codes of e4m3fn become e4m3fnuz codes of half the value where that is what the target has.
    """
    if by_row:
        quantised = finer(quantised, (1, quantised.values_shape[-1]))
    codes, scale = quantised.codes, quantised.scale
    halved = codes.type.dtype == "f8e4m3fn" and target.fp8 == "f8e4m3fnuz"
    if halved:
        kind = codes.type.with_dtype("f8e4m3fnuz")
        codes = codes.derive(f"{codes.name}.fnuz", kind, "as e4m3fnuz", _to_fnuz)
    powers = scale.type.dtype == "e8m0"
    if not (halved or powers):
        return codes, scale

    def change(bits: Bits) -> Bits:
        wide = decode(bits, "e8m0") if powers else bits.astype(np.float64)
        return (wide * 2 if halved else wide).astype(np.float32)

    how = ", ".join([*(["as f32"] if powers else []), *(["doubled"] if halved else [])])
    kind = scale.type.with_dtype("f32")
    return codes, scale.derive(f"{scale.name}.f32", kind, how, change)


def _to_fnuz(bits: Bits) -> Bits:
    return fn_to_fnuz(bits.astype(np.uint8))


def parameter(graph: Graph, base: str, weight: Weight) -> str:
    """The value of `weight`: that which stands for it already, or a new one called like `base`."""
    held = graph.parameters.get(base)
    if held is not None and held.identity == weight.identity:
        return base
    return graph.add_parameter(graph.fresh(base), weight)


def quantised_rows(build: Builder, x: str, attrs: Attrs, scale: str | None = None) -> list[str]:
    """Codes and scales of `x`, made once for all that want the same.

    Args:
        build: of the rewrite.
        x: rows.
        attrs: of the scaling.
        scale: the scale of the whole tensor, where the source gives one.
    """
    graph = build.graph
    inputs = (x,) if scale is None else (x, scale)
    wanted: dict[str, Attr] = dict(attrs) if scale is None else {**attrs, "has_scale": True}
    for user in graph.users(x):
        if user.op == "quantize" and user.inputs == inputs and dict(user.attrs) == wanted:
            return [*user.outputs, *inputs[1:]]
    return [*build.node("quantize", inputs, wanted).outputs, *inputs[1:]]
