"""Rows brought into an 8-bit float, written out by hand.

Fuses   s = max(max(abs(x)) / m, floor),   cast(x / s)       into   codes, s = quantize(x) {token}
        the same in a reshape [..., K] to [..., K/g, g]      into   quantize(x) {group = g}
        s = exp2(ceil(log2(...))) of it                      into   quantize(x) {rounding up}
        cast(clamp(x / s, -m, m)) for one number s           into   quantize(x, s) {tensor}

The largest magnitude may be bounded instead of the scale, or nothing; the quotient may be clamped
to what it cannot leave.  Upcasts inside go: scales and quotients are computed in f32.  m is the
number that the largest element is scaled to, such as 448 for e4m3fn.

Leaves it alone when
  fp8.arch  kernels of the target take another 8-bit float
  axis      the largest magnitude is not that of the last axis alone
  dtype     x is no float that kernels quantise, or its scales are not f32
  range     m is no number of the format, or the quotient is clamped to another range
  scale     the scale that is given is not one f32 number
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from fusec import symbolic
from fusec.formats import FP8, Scaling, fp8_scaling, magnitudes
from fusec.ir import Attr, Graph, Node
from fusec.ir.types import float_attr
from fusec.passes.facts import reduces_rows, with_cast
from fusec.passes.quantised_result import in_shape_of
from fusec.rewrite import FusionPass, Guard, Match, Maybe, Number, Op, Rejection, Var
from fusec.rewrite.driver import Builder
from fusec.target import Target

FLOATS = ("f32", "bf16", "f16")

X = Var("x")
WIDE = Maybe("cast", X)
TOP = Op("reduce_max", (Op("abs", (WIDE,)),), name="top")
TOPS = with_cast(TOP)
BOUNDED_TOPS: tuple[Op, ...] = (
    *(Op("clamp", (top,), name="bounded_top") for top in TOPS),
    *(Op("maximum", (top, Number("least_top"))) for top in TOPS),
)
INVERSE = Number("inverse")
RATIOS = tuple(Op("mul", (top, INVERSE), name="scale") for top in (*TOPS, *BOUNDED_TOPS))
BOUNDED_RATIOS: tuple[Op, ...] = (
    *(Op("clamp", (Op("mul", (top, INVERSE)),), name="scale") for top in TOPS),
    *(Op("maximum", (Op("mul", (top, INVERSE)), Number("least")), name="scale") for top in TOPS),
)
SCALES = (*RATIOS, *BOUNDED_RATIOS)


def _powers(scale: Op) -> Op:
    """The least power of two that is not below a scale."""
    inner = replace(scale, name="bounded" if scale.op == "clamp" else None)
    return Op("exp2", (Op("ceil", (Op("log2", (inner,)),)),), name="scale")


def _patterns() -> tuple[Op, ...]:
    dynamic = (*SCALES, *map(_powers, SCALES))
    quotients = [Op("div", (WIDE, scale)) for scale in dynamic]
    given = Op("clamp", (Op("div", (WIDE, Var("given"))),), name="range")
    clamped = [Op("clamp", (quotient,), name="range") for quotient in quotients]
    return tuple(Op("cast", (each,)) for each in (*quotients, *clamped, given))


def _maximum(match: Match) -> float | None:
    """What the largest element is scaled to, if that is a number of the format."""
    numbers = magnitudes(match.graph.type(match.root.output).dtype)
    wanted = _upper(match.nodes["range"]) if _is_given(match) else 1 / match.numbers["inverse"]
    near = [float(each) for each in numbers if math.isclose(each, wanted, rel_tol=1e-6)]
    return near[0] if near else None


def _upper(clamp: Node) -> float:
    bound = clamp.attrs.get("max")
    return float(bound) if isinstance(bound, int | float) else math.inf


def _is_given(match: Match) -> bool:
    return "given" in match.values


def _floor(match: Match) -> float:
    """The least scale."""
    if "least_top" in match.numbers:
        return match.numbers["least_top"] * match.numbers["inverse"]
    if "least" in match.numbers:
        return match.numbers["least"]
    for name, factor in (("bounded_top", match.numbers["inverse"]), ("bounded", 1.0)):
        if name in match.nodes:
            return float_attr(match.nodes[name].attrs, "min") * factor
    scale = match.nodes["scale"]
    return float_attr(scale.attrs, "min") if scale.op == "clamp" else 0.0


def _clamps(match: Match) -> list[Node]:
    """The clamps that bound scales or what they follow from."""
    named = [
        match.nodes[name] for name in ("bounded_top", "bounded", "scale") if name in match.nodes
    ]
    return [node for node in named if node.op == "clamp"]


def _arch(match: Match, target: Target) -> Rejection | None:
    dtype = match.graph.type(match.root.output).dtype
    if target.fp8 in (None, dtype):
        return None
    reason = f"{target.name} takes {target.fp8}, not {dtype}"
    return Rejection("fp8.arch", reason, match.root.name)


def _axis(match: Match, target: Target) -> Rejection | None:
    top = match.nodes.get("top")
    if top is None or reduces_rows(match.graph, top):
        return None
    return Rejection("axis", f"`%{top.name}` is not a maximum over the last axis alone", top.name)


def _dtype(match: Match, target: Target) -> Rejection | None:
    x = match.values["x"]
    if (kind := match.graph.type(x)).dtype not in FLOATS:
        return Rejection("dtype", f"`{kind}` is not one of {', '.join(FLOATS)}", x)
    if "scale" in match.nodes:
        scale = match.nodes["scale"].output
        if (kind := match.graph.type(scale)).dtype != "f32":
            return Rejection("dtype", f"the scales `{kind}` are not f32", scale)
    return None


def _range(match: Match, target: Target) -> Rejection | None:
    maximum = _maximum(match)
    if maximum is None:
        dtype = match.graph.type(match.root.output).dtype
        reason = f"the largest element becomes no number of {dtype}"
        return Rejection("range", reason, match.root.name)
    for clamp in _clamps(match):
        if clamp.attrs.get("max") is not None or clamp.attrs.get("min") is None:
            reason = f"`%{clamp.name}` bounds the scales from above"
            return Rejection("range", reason, clamp.name)
    bounded = match.nodes.get("range")
    if bounded is None or (
        math.isclose(_upper(bounded), maximum, rel_tol=1e-6)
        and bounded.attrs.get("min") == -_upper(bounded)
    ):
        return None
    reason = f"`%{bounded.name}` clamps to another range than {maximum:g} on both sides"
    return Rejection("range", reason, bounded.name)


def _scale(match: Match, target: Target) -> Rejection | None:
    if not _is_given(match):
        return None
    kind = match.graph.type(match.values["given"])
    if kind.dtype == "f32" and all(size == 1 for size in kind.shape):
        return None
    return Rejection("scale", f"`{kind}` is not one f32 number", match.values["given"])


class RowQuantize(FusionPass):
    """Codes by a scale for each row or group, or by one that is given."""

    name: ClassVar[str] = "row_quantize"
    after: ClassVar[tuple[str, ...]] = ("canonicalise",)
    patterns: ClassVar[tuple[Op, ...]] = _patterns()
    guards: ClassVar[tuple[Guard, ...]] = (_arch, _axis, _dtype, _range, _scale)

    def find(self, graph: Graph, node: Node) -> Match | None:
        """A cast to an 8-bit float of such a quotient."""
        return super().find(graph, node) if graph.type(node.output).dtype in FP8 else None

    def outputs(self, match: Match) -> tuple[str, ...]:
        """Codes, and scales unless they are given."""
        codes = match.root.output
        return (codes,) if _is_given(match) else (codes, match.nodes["scale"].output)

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the node, and views of its results where rows were seen as groups."""
        graph = match.graph
        x, group = _rows(graph, match.values["x"])
        scaling = _scaling(match, group)
        operands = [x]
        if _is_given(match):
            given = match.values["given"]
            if graph.type(given).shape != (1,):
                given = build.value("reshape", [given], {"shape": (1,)})
            operands.append(given)
        attrs: dict[str, Attr] = {**scaling.attrs(), "has_scale": _is_given(match)}
        results = build.node("quantize", operands, attrs).outputs
        return {
            old: in_shape_of(graph, old, new, build)
            for old, new in zip(self.outputs(match), results, strict=True)
        }


def _rows(graph: Graph, value: str) -> tuple[str, int]:
    """What `value` [..., K/g, g] was as [..., K], and g; or `value` and 0."""
    view, shape = graph.producer(value), graph.type(value).shape
    if view is None or view.op != "reshape" or len(shape) < 2 or not isinstance(shape[-1], int):
        return value, 0
    (source,) = view.inputs
    whole = graph.type(source).shape
    if whole[:-1] != shape[:-2] or whole[-1:] != (symbolic.product(shape[-2:]),):
        return value, 0
    return source, shape[-1]


def _scaling(match: Match, group: int) -> Scaling:
    """How rows are quantised; the least scale is named if it is not that of fusec's kernels."""
    dtype, maximum = match.graph.type(match.root.output).dtype, _maximum(match)
    if maximum is None:
        maximum = 0.0
    if _is_given(match):
        return replace(fp8_scaling(dtype, "tensor"), maximum=maximum)
    power = match.nodes["scale"].op == "exp2"
    granularity = "group" if group else "token"
    made = fp8_scaling(dtype, granularity, group=group, power_of_two=power)  # type: ignore[arg-type]
    made = replace(made, maximum=maximum)
    least = _floor(match)
    return made if math.isclose(least, made.floor, rel_tol=1e-6) else replace(made, least=least)
