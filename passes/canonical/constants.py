"""Constants: small ones are computed here, and elementwise operations read them without a shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fusec.ir import OPS, Attr, Node
from fusec.ir.ops.base import Array
from fusec.ir.types import broadcast
from fusec.passes.canonical.rewriter import Rewriter, Rule
from fusec.symbolic import Dim, Expr, floor_divide, modulo

MAX_ELEMENTS = 64
"""A result larger than this is not worth a place in the program's text."""

_SIZE_ARITHMETIC = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floordiv": floor_divide,
    "mod": modulo,
}
_FOLDED = ("reshape", "transpose", "slice", "concat", "flip", "expand", "iota")


def fold(build: Rewriter, node: Node) -> str | None:
    """An operation on constants alone is a constant."""
    if len(node.outputs) != 1 or node.op in ("constant", "full"):
        return None
    kind = build.type(node.output)
    held = [_held(build, value) for value in node.inputs]
    if not held or any(value is None for value in held):
        return None
    scalars = [value for value in held if not isinstance(value, tuple)]
    alike = len(scalars) == len(held)
    if alike and node.op in ("reshape", "transpose", "slice", "expand", "flip"):
        return build.constant(scalars[0], kind.dtype, kind.shape)
    if any(isinstance(value, Expr) for value in scalars):
        return _fold_sizes(build, node, scalars) if alike else None
    if alike and OPS[node.op].elementwise:
        arrays = [np.asarray(value) for value in scalars]
        return _computed(build, node, arrays, scalar=True)
    sizes = [_elements(build, value) for value in (*node.inputs, node.output)]
    if node.op in _FOLDED and all(size is not None and size <= MAX_ELEMENTS for size in sizes):
        return _computed(build, node, [_array(build, value) for value in node.inputs], scalar=False)
    return None


def full(build: Rewriter, node: Node) -> str:
    """`full` is another word for a constant."""
    return build.value("constant", (), node.attrs)


def plain_operands(build: Rewriter, node: Node) -> str | None:
    """An elementwise operation reads what an expand reads, and constants as scalars.

    Broadcasting does the rest, as long as the result keeps its shape.
    """
    if not OPS[node.op].elementwise or len(node.inputs) < 2:
        return None
    shape = build.type(node.output).shape
    inputs = list(node.inputs)
    for position, value in enumerate(node.inputs):
        plainer = _plainer(build, value)
        if plainer is None:
            continue
        trial = [*inputs[:position], plainer, *inputs[position + 1 :]]
        if broadcast(*(build.type(each).shape for each in trial)) == shape:
            inputs = trial
    if tuple(inputs) == node.inputs:
        return None
    build.graph.set_inputs(node.name, tuple(inputs))
    return node.output


def _plainer(build: Rewriter, value: str) -> str | None:
    node = build.graph.producer(value)
    if node is None:
        return None
    if node.op == "expand":
        return node.inputs[0]
    if node.op == "constant" and build.type(value).rank:
        held = node.attrs["value"]
        return None if isinstance(held, tuple) else build.constant(held, build.type(value).dtype)
    if node.op == "reshape":
        before, after = build.type(node.inputs[0]).shape, build.type(value).shape
        lead = len(after) - len(before)
        if lead > 0 and after[lead:] == before and set(after[:lead]) == {1}:
            return node.inputs[0]
    return None


def _held(build: Rewriter, value: str) -> Attr:
    """The number that all elements are, or nested tuples; `None` if not a constant."""
    node = build.producer(value, "constant")
    return None if node is None else node.attrs["value"]


def _elements(build: Rewriter, value: str) -> int | None:
    count = build.type(value).elements
    return count if isinstance(count, int) else None


def _array(build: Rewriter, value: str) -> Array:
    node = build.producer(value, "constant")
    assert node is not None
    reference = OPS["constant"].reference
    return reference([], node.attrs, (build.type(value),))[0]


def _fold_sizes(build: Rewriter, node: Node, held: Sequence[Attr]) -> str | None:
    kind = build.type(node.output)
    if node.op == "cast" and kind.element.is_integer and kind.element.bits >= 32:
        return build.constant(held[0], kind.dtype, kind.shape)
    if node.op not in _SIZE_ARITHMETIC or not kind.element.is_integer:
        return None
    left, right = (value for value in held)
    if not isinstance(left, int | Expr) or not isinstance(right, int | Expr) or right == 0:
        return None
    result: Dim = _SIZE_ARITHMETIC[node.op](left, right)
    return build.constant(result, kind.dtype, kind.shape)


def _computed(build: Rewriter, node: Node, arrays: list[Array], *, scalar: bool) -> str | None:
    kind = build.type(node.output)
    types = (kind.with_shape(()),) if scalar else (kind,)
    widened = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]
    for position, value in enumerate(node.inputs):
        if build.type(value).element.is_float:
            widened[position] = widened[position].astype(np.float64)
    with np.errstate(all="ignore"):
        (result,) = OPS[node.op].reference(widened, node.attrs, types)
    listed = _attr(result.tolist())
    if isinstance(listed, float) and math.isnan(listed):
        return None
    return build.constant(listed, kind.dtype, kind.shape)


def _attr(value: object) -> Attr:
    if isinstance(value, list):
        return tuple(_attr(item) for item in value)
    assert isinstance(value, bool | int | float)
    return value


RULES: dict[str, Rule] = {"full": full}
"""Rules by the operation they look at; `fold` and `plain_operands` look at every one."""
