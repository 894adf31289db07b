"""Rotary position embedding, written out by hand.

Fuses   x * cos + concat(-upper, lower) * sin                                half
        x * cos + concat(upper, -lower) * sin                                half, turned back
        concat(lower * cos - upper * sin, upper * cos + lower * sin)         half
        the same of even and odd elements of x in the place of its halves    interleaved
        the same, put back in the order of the pairs or left in half order   deinterleave
        concat(rope(part of x), rest of x)                                   rotary_dim
into    rope(x, cos, sin) {style, rotary_dim, deinterleave}

The tables stay computed values.  A table that is as wide as the rotated part holds each angle
twice; that it does is shown from how it was computed: from a concat of one value with itself, a
repeat of each element, or a stored table; pairs may also lie side by side, for several axes.

Leaves it alone when
  layout  the parts are not the two halves, or the even and odd elements, of one stretch of a row
  shape   the tables do not fit the rotated elements, or widen x
  table   the two copies of an angle are not known to be equal
  dtype   the result is rounded to another dtype than that of x
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from fusec.diagnostics import VerifyError
from fusec.ir import Attr, Graph, Node
from fusec.ir.types import broadcast, dim_attr, int_attr
from fusec.passes.facts import before_widening, keeps_dtype
from fusec.passes.tables import angles_repeat
from fusec.rewrite import FusionPass, Guard, Match, Op, Rejection, Var
from fusec.rewrite.driver import Builder
from fusec.symbolic import Dim
from fusec.target import Target

X, BASE, COS, SIN = Var("x"), Var("base"), Var("cos"), Var("sin")
LOW = Op("slice", (BASE,), name="low", shared=True)
HIGH = Op("slice", (BASE,), name="high", shared=True)
TURNED = Op("concat", (Op("neg", (HIGH,)), LOW), name="turned")
TURNED_BACK = Op("concat", (HIGH, Op("neg", (LOW,), name="back")), name="turned")
TURNED_PAIRS = Op(
    "reshape",
    (Op("concat", (Op("reshape", (Op("neg", (HIGH,)),)), Op("reshape", (LOW,)))),),
    name="turned_pairs",
)
FIRST = Op("sub", (Op("mul", (LOW, COS)), Op("mul", (HIGH, SIN))))
SECOND = Op("add", (Op("mul", (HIGH, COS)), Op("mul", (LOW, SIN))))
WIDE_X = Op("cast", (X,), shared=True)
BODY = Op("slice", (X,), name="body", shared=True)
REST = Op("slice", (X,), name="rest", shared=True)
Style = Literal["half", "interleaved"]


@dataclass(frozen=True, slots=True)
class Region:
    """The stretch of a row that is rotated."""

    start: Dim
    half: int
    style: Style


def region(match: Match) -> Region | None:
    """What the two slices select, if they are halves, or even and odd elements, of one stretch."""
    low, high = (match.nodes[name] for name in ("low", "high"))
    type = match.graph.type(low.inputs[0])
    half = match.graph.type(low.output).shape[-1]
    if any(int_attr(node.attrs, "axis") != type.rank - 1 for node in (low, high)):
        return None
    if not isinstance(half, int) or match.graph.type(high.output).shape[-1] != half:
        return None
    steps = tuple(int_attr(node.attrs, "step") for node in (low, high))
    start, other = low.attrs["start"], high.attrs["start"]
    if not isinstance(start, int) or not isinstance(other, int):
        return None
    if steps == (1, 1) and other == start + half:
        return Region(start, half, "half")
    if steps == (2, 2) and other == start + 1:
        return Region(start, half, "interleaved")
    return None


def _layout(match: Match, target: Target) -> Rejection | None:
    nodes = match.nodes
    good = True
    if "rope" in nodes:
        good = "body" not in nodes or _continues(match)
    elif "low" in nodes:
        found = region(match)
        good = found is not None and _fits(match, found)
    if good:
        return None
    reason = "the slices are not the halves, or the even and odd elements, of one stretch"
    return Rejection("layout", reason, match.root.name)


def _fits(match: Match, found: Region) -> bool:
    """Whether the parts are put together in the way of their style, and are parts of x."""
    graph, nodes = match.graph, match.nodes
    if "x" in match.values and not _is_region(match, found):
        return False
    last = graph.type(match.values["base"]).rank - 1
    joined = nodes.get("turned") or nodes.get("joined")
    if joined is not None and int_attr(joined.attrs, "axis") != last:
        return False
    pairs = nodes.get("turned_pairs") or nodes.get("joined_pairs")
    if pairs is not None:
        stacked = graph.producer(pairs.inputs[0])
        assert stacked is not None
        shape = graph.type(stacked.output).shape
        paired = shape[-2:] == (found.half, 2) and int_attr(stacked.attrs, "axis") == last + 1
        if "turned_pairs" in nodes and graph.type(pairs.output) != graph.type(match.values["x"]):
            return False
        return paired and found.style == "interleaved" and len(shape) == last + 2
    return "turned" not in nodes or found.style == "half"


def _is_region(match: Match, found: Region) -> bool:
    """Whether `x` is the stretch of `base` that `found` describes."""
    graph, x, base = match.graph, match.values["x"], match.values["base"]
    if x == base:
        return found.start == 0 and graph.type(base).shape[-1] == 2 * found.half
    node = graph.producer(x)
    if node is None or node.op != "slice" or node.inputs != (base,):
        return False
    window = {"axis": graph.type(base).rank - 1, "start": found.start, "step": 1}
    same = all(node.attrs[key] == wanted for key, wanted in window.items())
    return same and graph.type(x).shape[-1] == 2 * found.half


def _continues(match: Match) -> bool:
    """Whether `rest` is what comes after the rotated `body` in every row."""
    graph, nodes = match.graph, match.nodes
    last, body, rest = graph.type(match.values["x"]).rank - 1, nodes["body"], nodes["rest"]
    along = all(node.attrs["axis"] == last for node in (match.root, body, rest))
    whole = graph.type(body.output).shape[-1] == nodes["rope"].attrs["rotary_dim"]
    adjacent = body.attrs["stop"] == rest.attrs["start"]
    return along and whole and adjacent and body.attrs["step"] == rest.attrs["step"] == 1


def _shape(match: Match, target: Target) -> Rejection | None:
    if "low" not in match.nodes:
        return None
    graph, found = match.graph, region(match)
    cos, sin = (graph.type(match.values[name]) for name in ("cos", "sin"))
    x = graph.type(match.nodes["low"].output)
    if found is not None and cos.shape == sin.shape and cos.rank > 0:
        width = 2 * found.half if "x" in match.values else found.half
        try:
            rows = broadcast(x.shape[:-1], cos.shape[:-1])
        except VerifyError:
            rows = ()
        if cos.shape[-1] == width and rows == x.shape[:-1]:
            return None
    reason = f"`{cos}` and `{sin}` are not tables for `{x}`"
    return Rejection("shape", reason, match.values["cos"])


def _table(match: Match, target: Target) -> Rejection | None:
    found = region(match) if "low" in match.nodes else None
    if found is None or "x" not in match.values:
        return None
    for name in ("cos", "sin"):
        value = match.values[name]
        if not angles_repeat(match.graph, value, pairs=found.style == "interleaved"):
            reason = f"`%{value}` may hold two different values for one angle"
            return Rejection("table", reason, value)
    return None


class Rope(FusionPass):
    """First the rotation, then what was done around it: pass-through, pairs, casts."""

    name: ClassVar[str] = "rope"
    fusion: ClassVar[str | None] = "rope"
    after: ClassVar[tuple[str, ...]] = ("canonicalise",)
    patterns: ClassVar[tuple[Op, ...]] = (
        *(
            Op("add", (Op("mul", (X, COS)), Op("mul", (turned, SIN))))
            for turned in (TURNED, TURNED_BACK, TURNED_PAIRS)
        ),
        *(
            Op("add", (Op("mul", (WIDE_X, COS)), Op("mul", (Op("cast", (turned,)), SIN))))
            for turned in (TURNED, TURNED_BACK, TURNED_PAIRS)
        ),
        Op("concat", (FIRST, SECOND), name="joined"),
        Op(
            "reshape",
            (Op("concat", (Op("reshape", (FIRST,)), Op("reshape", (SECOND,)))),),
            name="joined_pairs",
        ),
        Op("concat", (Op("rope", (BODY, COS, SIN), name="rope"), REST)),
        Op("cast", (Op("rope", (WIDE_X, COS, SIN), name="rope"),)),
    )
    guards: ClassVar[tuple[Guard, ...]] = (_layout, _shape, _table, keeps_dtype)

    def site(self, match: Match) -> str:
        """The projection that is rotated, and which of its columns; else the attention module."""
        here = super().site(match)
        made, columns = _made_by(match.graph, *_rotated(match))
        if made is None or not made.origin.path.startswith(here):
            return here
        return made.origin.path + columns

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the rotation of x, or of the stretch of `base` that is rotated."""
        graph, nodes = match.graph, match.nodes
        attrs: dict[str, Attr] = {}
        if "rope" in nodes:
            attrs.update(nodes["rope"].attrs)
            x = match.values["x"]
            if "body" in nodes:
                start = dim_attr(nodes["body"].attrs, "start")
                x = _window(graph, x, start, dim_attr(nodes["rest"].attrs, "stop"), build)
        else:
            found = region(match)
            assert found is not None
            x = _stretch(match, found, build)
            attrs["style"], attrs["rotary_dim"] = found.style, 2 * found.half
            attrs["deinterleave"] = found.style == "interleaved" and "joined" in nodes
            paired = before_unpairing(graph, x) if found.style == "half" else None
            if paired is not None:
                x = paired
                attrs.update(style="interleaved", deinterleave=True)
        wanted = graph.type(match.root.output).dtype
        if "rope" not in nodes and graph.type(x).dtype != wanted:
            x = build.value("cast", [x], {"dtype": wanted})
        cos, sin = (_table_for(graph, x, match.values[name]) for name in ("cos", "sin"))
        if "back" in nodes:
            sin = build.value("neg", [sin])
        value = build.value("rope", [x, cos, sin], attrs)
        shape = graph.type(match.root.output).shape
        if graph.type(value).shape != shape:  # pairs that were flattened together with the heads
            value = build.value("reshape", [value], {"shape": shape})
        return {match.root.output: value}


def _table_for(graph: Graph, x: str, table: str) -> str:
    """`table` before it was widened, if it was of the dtype of `x`; kernels read that and f32."""
    narrow = before_widening(graph, table)
    return narrow if graph.type(narrow).dtype == graph.type(x).dtype else table


def before_unpairing(graph: Graph, x: str) -> str | None:
    """The rows whose even elements, and then the odd ones, `x` holds, where that can be seen."""
    flat, swap, paired = graph.producer(x), None, None
    if flat is not None and flat.op == "reshape":
        swap = graph.producer(flat.inputs[0])
    if swap is not None and swap.op == "transpose":
        paired = graph.producer(swap.inputs[0])
    if swap is None or paired is None or paired.op != "reshape":
        return None
    shape, rows = graph.type(paired.output).shape, graph.type(x).shape
    rank = len(shape)
    swapped = (*range(rank - 2), rank - 1, rank - 2)
    if swap.attrs["perm"] != swapped or shape[-1] != 2 or (*shape[:-2], shape[-2] * 2) != rows:
        return None
    (source,) = paired.inputs
    return source if graph.type(source).shape == rows else None


def _stretch(match: Match, found: Region, build: Builder) -> str:
    if "x" in match.values:
        return match.values["x"]
    stop = found.start + 2 * found.half
    return _window(match.graph, match.values["base"], found.start, stop, build)


def _window(graph: Graph, base: str, start: Dim, stop: Dim, build: Builder) -> str:
    """The columns of `base` from `start` to `stop`."""
    type = graph.type(base)
    if start == 0 and type.shape[-1] == stop:
        return base
    window: dict[str, Attr] = {"axis": type.rank - 1, "start": start, "stop": stop, "step": 1}
    return build.value("slice", [base], window)


_CARRIERS = ("reshape", "transpose", "cast", "rms_norm", "l2_norm", "layer_norm", "expand")


def _rotated(match: Match) -> tuple[str, str]:
    """The value that the rotated columns belong to, and which ones if not all."""
    graph, nodes = match.graph, match.nodes
    if "body" in nodes:
        base = match.values["x"]
        window = (nodes["body"].attrs["start"], nodes["rest"].attrs["stop"])
    elif "low" in nodes and (found := region(match)) is not None:
        base, window = match.values["base"], (found.start, found.start + 2 * found.half)
    else:
        return match.values.get("base", match.values.get("x", match.root.output)), ""
    whole = window == (0, graph.type(base).shape[-1])
    return base, "" if whole else f"[{window[0]}:{window[1]}]"


def _made_by(graph: Graph, value: str, columns: str) -> tuple[Node | None, str]:
    """The projection that `value` comes from, through views and norms."""
    node = graph.producer(value)
    while node is not None and (node.op in _CARRIERS or node.op == "slice"):
        if node.op == "slice":
            columns = columns or f"[{node.attrs['start']}:{node.attrs['stop']}]"
        node = graph.producer(node.inputs[0])
    return (node, columns) if node is not None and node.op == "linear" else (None, "")
