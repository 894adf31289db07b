"""Reshape, transpose, expand, slice, concat: no-ops go, chains become one."""

from __future__ import annotations

from fusec import symbolic
from fusec.ir import Node
from fusec.ir.types import dim_attr, dims_attr, int_attr, ints_attr
from fusec.passes.canonical.rewriter import Rewriter, Rule
from fusec.symbolic import Dim

MAX_PIECES = 64
"""A chain of slice_scatter longer than this is not followed."""


def reshape(build: Rewriter, node: Node) -> str | None:
    """A reshape to the same shape goes, and of two in a row the first one.

    Of those around a product the second one goes, where it brings back the axes of before.
    Element i of every group of g neighbours, by way of [..., n, g], is a slice of the rows
    [..., n*g] with the step g.
    """
    (x,) = node.inputs
    if build.type(x) == build.type(node.output):
        return x
    if (inner := build.producer(x, "reshape")) is not None:
        return build.reshaped(inner.inputs[0], build.type(node.output).shape)
    if (picked := build.producer(x, "slice")) is not None:
        return _one_of_each_group(build, node, picked)
    if (product := build.producer(x, "linear")) is not None:
        return _product_of_rows(build, node, product)
    return None


def _product_of_rows(build: Rewriter, node: Node, product: Node) -> str | None:
    """A product of rows that were flattened for it, and are spread again, is one of all axes."""
    rows, *weights = product.inputs
    flattened = build.producer(rows, "reshape")
    if flattened is None or build.graph.use_count(product.output) != 1:
        return None
    (x,) = flattened.inputs
    shape = build.type(node.output).shape
    if shape[-1:] != build.type(product.output).shape[-1:]:
        return None
    lead = shape[:-1]
    if build.type(x).shape[: len(lead)] != lead:
        return None
    spread = build.reshaped(x, (*lead, *build.type(rows).shape[-1:]))
    return build.value("linear", [spread, *weights], product.attrs, product.origin)


def _one_of_each_group(build: Rewriter, node: Node, picked: Node) -> str | None:
    grouped = build.producer(picked.inputs[0], "reshape")
    if grouped is None:
        return None
    shape = build.type(grouped.output).shape
    axis, start, _, _ = _window(picked)
    if axis != len(shape) - 1 or build.type(node.output).shape != shape[:-1]:
        return None
    if not isinstance(shape[-1], int) or len(shape) < 2:
        return None
    columns = shape[-2] * shape[-1]
    rows = build.reshaped(grouped.inputs[0], (*shape[:-2], columns))
    end = columns - shape[-1] + start + 1
    window = {"axis": axis - 1, "start": start, "stop": end, "step": shape[-1]}
    return build.value("slice", [rows], window)


def transpose(build: Rewriter, node: Node) -> str | None:
    """The identity goes, pairs compose; one that moves only axes of size 1 is a reshape."""
    (x,) = node.inputs
    perm = ints_attr(node.attrs, "perm")
    if perm == tuple(range(len(perm))):
        return x
    if (inner := build.producer(x, "transpose")) is not None:
        first = ints_attr(inner.attrs, "perm")
        composed = tuple(first[axis] for axis in perm)
        return build.value("transpose", inner.inputs, {"perm": composed})
    shape = build.type(x).shape
    wide = [axis for axis in perm if shape[axis] != 1]
    if wide == sorted(wide):
        return build.reshaped(x, build.type(node.output).shape)
    return None


def expand(build: Rewriter, node: Node) -> str | None:
    """An expand to the same shape goes, and of two in a row the first one."""
    (x,) = node.inputs
    if build.type(x) == build.type(node.output):
        return x
    if (inner := build.producer(x, "expand")) is not None:
        return build.value("expand", inner.inputs, node.attrs)
    return None


def slice(build: Rewriter, node: Node) -> str | None:
    """A whole slice goes; slices of slices compose; a slice of a concat is a slice of a part."""
    (x,) = node.inputs
    if build.type(x) == build.type(node.output):
        return x
    axis, start, stop, step = _window(node)
    if (inner := build.producer(x, "slice")) is not None:
        inner_axis, inner_start, _, inner_step = _window(inner)
        if inner_axis == axis:
            length = build.type(node.output).shape[axis]
            begin = inner_start + start * inner_step
            stride = inner_step * step
            end = begin + stop - start
            if stride != 1 and length != 0:
                end = begin + (length - 1) * stride + 1
            attrs = {"axis": axis, "start": begin, "stop": end, "step": stride}
            return build.value("slice", inner.inputs, attrs)
    joined = build.producer(x, "concat")
    if joined is not None and int_attr(joined.attrs, "axis") == axis:
        return _slice_of_part(build, node, joined)
    return None


def concat(build: Rewriter, node: Node) -> str | None:
    """One operand is itself; neighbouring slices of one value are one slice."""
    if len(node.inputs) == 1:
        return node.inputs[0]
    axis = int_attr(node.attrs, "axis")
    full = [value for value in node.inputs if build.type(value).shape[axis] != 0]
    merged: list[str] = []
    for value in full or node.inputs[:1]:
        if merged and (joined := _joined(build, merged[-1], value, axis)) is not None:
            merged[-1] = joined
        else:
            merged.append(value)
    if tuple(merged) == node.inputs:
        return None
    if len(merged) == 1:
        return merged[0]
    return build.value("concat", merged, {"axis": axis})


def pad(build: Rewriter, node: Node) -> str | None:
    """Padding by nothing goes; padding that only crops is a slice."""
    (x,) = node.inputs
    low, high = dims_attr(node.attrs, "low"), dims_attr(node.attrs, "high")
    if any(not isinstance(size, int) or size > 0 for size in (*low, *high)):
        return None
    for axis, (before, after) in enumerate(zip(low, high, strict=True)):
        if before or after:
            end = build.type(x).shape[axis] + after
            window = {"axis": axis, "start": 0 - before, "stop": end, "step": 1}
            x = build.value("slice", [x], window)
    return x


def flip(build: Rewriter, node: Node) -> str | None:
    """A flip of no axis goes."""
    return None if ints_attr(node.attrs, "axes") else node.inputs[0]


def slice_scatter(build: Rewriter, node: Node) -> str | None:
    """A chain that writes every element of an axis is a concat; what was there before is gone."""
    axis = int_attr(node.attrs, "axis")
    extent = build.type(node.output).shape[axis]
    pieces: list[tuple[Dim, Dim, str]] = []
    current: Node | None = node
    while current is not None:
        here, start, stop, step = _window(current)
        overlaps = any(not (_below(stop, a) or _below(b, start)) for a, b, _ in pieces)
        if here != axis or step != 1 or overlaps or len(pieces) == MAX_PIECES:
            return None
        pieces.append((start, stop, current.inputs[1]))
        written = sum((stop - start for start, stop, _ in pieces), start=0)
        if written == extent:
            break
        current = build.producer(current.inputs[0], "slice_scatter")
    else:
        return None
    position: Dim = 0
    ordered: list[str] = []
    while pieces:
        piece = next((p for p in pieces if p[0] == position), None)
        if piece is None:
            return None
        pieces.remove(piece)  # one that writes nothing ends where it begins
        ordered.append(piece[2])
        position = piece[1]
    return ordered[0] if len(ordered) == 1 else build.value("concat", ordered, {"axis": axis})


def _window(node: Node) -> tuple[int, Dim, Dim, int]:
    attrs = node.attrs
    bounds = dim_attr(attrs, "start"), dim_attr(attrs, "stop")
    return int_attr(attrs, "axis"), *bounds, int_attr(attrs, "step")


def _below(a: Dim, b: Dim) -> bool:
    """Whether `a <= b` for certain."""
    return symbolic.bounds(b - a, {})[0] >= 0


def _slice_of_part(build: Rewriter, node: Node, joined: Node) -> str | None:
    axis, start, stop, step = _window(node)
    position: Dim = 0
    for part in joined.inputs:
        length = build.type(part).shape[axis]
        if _below(position, start) and _below(stop, position + length):
            attrs = {"axis": axis, "start": start - position, "stop": stop - position, "step": step}
            return build.value("slice", [part], attrs)
        position = position + length
    return None


def _joined(build: Rewriter, left: str, right: str, axis: int) -> str | None:
    """The slice that `left` and `right` make up, if they are neighbours in one value."""
    first, second = build.producer(left, "slice"), build.producer(right, "slice")
    if first is None or second is None or first.inputs != second.inputs:
        return None
    left_axis, start, middle, left_step = _window(first)
    right_axis, resumed, stop, right_step = _window(second)
    if (left_axis, right_axis) != (axis, axis) or left_step != 1 or right_step != 1:
        return None
    if middle != resumed:
        return None
    attrs = {"axis": axis, "start": start, "stop": stop, "step": 1}
    return build.value("slice", first.inputs, attrs)


def take(build: Rewriter, node: Node) -> str | None:
    """What one constant position of an axis holds is a slice, expanded."""
    x, index = node.inputs
    shape, at = build.type(x).shape, build.graph.constant(index)
    axis = int_attr(node.attrs, "axis") % len(shape)
    size = shape[axis]
    if not isinstance(at, int) or not isinstance(size, int) or not -size <= at < size:
        return None
    start = at % size
    window = {"axis": axis, "start": start, "stop": start + 1, "step": 1}
    ones = (1,) * build.type(index).rank
    thin = (*shape[:axis], *ones, *shape[axis + 1 :])
    picked = build.reshaped(build.value("slice", [x], window), thin)
    wide = build.type(node.output).shape
    return picked if thin == wide else build.value("expand", [picked], {"shape": wide})


RULES: dict[str, Rule] = {
    "reshape": reshape,
    "transpose": transpose,
    "expand": expand,
    "slice": slice,
    "concat": concat,
    "pad": pad,
    "flip": flip,
    "slice_scatter": slice_scatter,
    "take": take,
}
"""Rules by the operation they look at."""
