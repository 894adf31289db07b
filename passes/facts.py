"""Facts about values that several passes ask for."""

from __future__ import annotations

from fusec.ir import Attr, Graph, Node
from fusec.ir.types import bool_attr, int_attr, ints_attr
from fusec.passes.canonical.casts import holds_exactly
from fusec.rewrite import Match, Op, Pattern, Rejection
from fusec.target import Target


def with_cast(pattern: Op) -> tuple[Pattern, ...]:
    """`pattern`, as it is and with a cast after it that belongs to the match."""
    return pattern, Op("cast", (pattern,))


def reduces_rows(graph: Graph, reduction: Node) -> bool:
    """Whether `reduction` goes over the last axis alone and keeps it."""
    last = graph.type(reduction.inputs[0]).rank - 1
    keeps = bool_attr(reduction.attrs, "keepdims")
    return keeps and ints_attr(reduction.attrs, "axes") == (last,)


def before_widening(graph: Graph, value: str) -> str:
    """What `value` was before a cast that lost nothing; `value` itself if there is none."""
    node = graph.producer(value)
    if node is None or node.op != "cast":
        return value
    (source,) = node.inputs
    narrow, wide = graph.type(source), graph.type(value)
    widened = narrow.element.is_float and holds_exactly(wide.dtype, narrow.dtype)
    return source if widened else value


def only_reader(graph: Graph, value: str) -> Node | None:
    """The node that alone reads `value`, if there is one."""
    users = graph.users(value)
    return users[0] if len(users) == 1 and graph.use_count(value) == 1 else None


def swiglu_limit(gate: Node | None, up: Node | None) -> float | None:
    """The one limit of `clamp`s of gate, from above, and of up, on both sides, if they have one."""
    if gate is None or up is None or (gate.op, up.op) != ("clamp", "clamp"):
        return None
    limit = gate.attrs.get("max")
    bounds = (gate.attrs.get("min"), up.attrs.get("min"), up.attrs.get("max"))
    if isinstance(limit, int | float) and bounds == (None, -limit, limit):
        return float(limit)
    return None


def gate_up_layout(graph: Graph, gate: Node, up: Node) -> str | None:
    """How `gate` and `up`, slices of values of one type, lie beside each other.

    Returns:
        `split` where gate is the first half of the last axis and up the second; `interleaved` where
        gate has the even elements and up the odd ones; `None` where it is neither.
    """
    kind = graph.type(gate.inputs[0])
    width = kind.shape[-1]
    axes = {int_attr(node.attrs, "axis") % kind.rank for node in (gate, up)}
    if axes != {kind.rank - 1} or not isinstance(width, int) or width % 2:
        return None
    half = width // 2
    layouts: dict[tuple[tuple[Attr, ...], ...], str] = {
        ((0, half, 1), (half, width, 1)): "split",
        ((0, width, 2), (1, width, 2)): "interleaved",
        ((0, width - 1, 2), (1, width, 2)): "interleaved",
    }
    windows = (tuple(node.attrs[key] for key in ("start", "stop", "step")) for node in (gate, up))
    return layouts.get(tuple(windows))


def gelu_name(node: Node) -> str:
    """What attributes call the gelu of `node`."""
    return "gelu_tanh" if node.attrs.get("approximate") == "tanh" else "gelu"


def residual_keeps_shape(match: Match, target: Target) -> Rejection | None:
    """Guard: a `residual` has the shape of the `product` that it is added to."""
    if "residual" not in match.values:
        return None
    product = match.graph.type(match.nodes["product"].output)
    residual = match.graph.type(match.values["residual"])
    if residual.shape == product.shape:
        return None
    return Rejection("shape", f"`{product}` is added to `{residual}`", match.root.name)


def known_length(match: Match, target: Target) -> Rejection | None:
    """Guard: rows of the result have a length known at compile time, which kernels of GPUs need."""
    rows = match.graph.type(match.root.output)
    if not target.is_gpu or isinstance(rows.shape[-1], int):
        return None
    reason = f"rows of `{rows}` have no length known at compile time"
    return Rejection("length", reason, match.root.name)


def keeps_shape(match: Match, target: Target) -> Rejection | None:
    """Guard: the result has the shape of x, so that no constant on the way widens it."""
    x, result = (match.graph.type(value) for value in (match.values["x"], match.root.output))
    if x.shape == result.shape:
        return None
    return Rejection("shape", f"`{x}` is widened to `{result}`", match.root.name)


def keeps_dtype(match: Match, target: Target) -> Rejection | None:
    """Guard: a cast at the root takes the result back to the dtype of x."""
    if match.root.op != "cast":
        return None
    x, result = (match.graph.type(value) for value in (match.values["x"], match.root.output))
    if x.dtype == result.dtype:
        return None
    reason = f"x is {x.dtype}, but the result is rounded to {result.dtype}"
    return Rejection("dtype", reason, match.root.name)


def mean_of_rows(match: Match, target: Target) -> Rejection | None:
    """Guard: the node called `mean`, if there is one, goes over the last axis alone."""
    mean = match.nodes.get("mean")
    if mean is None or reduces_rows(match.graph, mean):
        return None
    return Rejection("axis", f"`%{mean.name}` is not a mean over the last axis alone", mean.name)


def weighs_columns(match: Match, target: Target) -> Rejection | None:
    """Guard: `weight` and `bias`, where there are any, hold one number for each column of x."""
    for name in ("weight", "bias"):
        value = match.values.get(name)
        if value is None or is_row_vector(match.graph, value, match.values["x"]):
            continue
        kind, rows = match.graph.type(value), match.graph.type(match.values["x"])
        reason = f"`{kind}` is not one number for each column of `{rows}`"
        return Rejection("weight", reason, value)
    return None


def is_row_vector(graph: Graph, value: str, rows: str) -> bool:
    """Whether `value` holds one float for each column of `rows`, as the weight of a norm does."""
    kind, x = graph.type(value), graph.type(rows)
    return kind.element.is_float and kind.rank == 1 and x.rank > 1 and kind.shape == x.shape[-1:]
