"""What is known of tables of cosines and sines from how they were computed."""

from __future__ import annotations

import numpy as np

from fusec.ir import OPS, Graph, Node
from fusec.ir.types import int_attr, ints_attr

MAX_DEPTH = 32
MAX_TABLE_BYTES = 1 << 26
_MOVED = ("cast", "concat", "expand", "flip", "index", "reshape", "slice", "take", "transpose")
"""What leaves numbers as they are, or rounds them."""


def angles_repeat(graph: Graph, value: str, *, pairs: bool, depth: int = 0) -> bool:
    """Whether rows of `value` hold every element twice.

    Args:
        graph: where.
        value: [..., 2n].
        pairs: elements 2i and 2i + 1 are equal, rather than i and i + n.
        depth: how far the walk has come; it ends, with no, at `MAX_DEPTH`.
    """
    type = graph.type(value)
    if type.rank == 0 or type.shape[-1] == 1:
        return True
    if value in graph.parameters:
        return _stored(graph, value, pairs)
    node = graph.producer(value)
    if node is None or depth == MAX_DEPTH:
        return False

    def known(operand: str) -> bool:
        return angles_repeat(graph, operand, pairs=pairs, depth=depth + 1)

    if node.op in OPS and OPS[node.op].elementwise:
        return all(known(operand) for operand in node.inputs)
    last = type.rank - 1
    match node.op:
        case "constant":
            return not isinstance(node.attrs["value"], tuple)
        case "expand":
            return known(node.inputs[0])
        case "transpose":
            return ints_attr(node.attrs, "perm")[-1] == last and known(node.inputs[0])
        case "concat" if int_attr(node.attrs, "axis") == last:
            if pairs:
                return all(_whole_pairs(graph, part) and known(part) for part in node.inputs)
            half = len(node.inputs) // 2
            return node.inputs[:half] == node.inputs[half:]
        case "slice" | "concat" | "flip" | "take" if not _along_last(graph, node):
            tables = node.inputs[:1] if node.op == "take" else node.inputs
            return all(known(operand) for operand in tables)
        case "index":
            axes = ints_attr(node.attrs, "axes")
            return graph.type(node.inputs[0]).rank - 1 not in axes and known(node.inputs[0])
        case "reshape":
            return _reshaped(graph, node, pairs) or (
                graph.type(node.inputs[0]).shape[-1:] == type.shape[-1:] and known(node.inputs[0])
            )
    return False


def turn_by_one_angle(graph: Graph, cos: str, sin: str, bits: int, depth: int = 0) -> bool:
    """Whether `cos` and `sin` hold the cosine and the sine, or its negative, of the same angles.

    What they turn keeps its length then.

    Args:
        graph: where.
        cos: a table.
        sin: another.
        bits: to how many at least they may be rounded.
        depth: how far the walk has come; it ends, with no, at `MAX_DEPTH`.
    """
    of_cos, of_sin = graph.producer(cos), graph.producer(sin)
    element = graph.type(cos).element
    if of_cos is None or of_sin is None or depth == MAX_DEPTH:
        return False
    if not element.is_float or element.bits < bits:
        return False
    if of_sin.op == "neg":
        return turn_by_one_angle(graph, cos, of_sin.inputs[0], bits, depth + 1)
    if (of_cos.op, of_sin.op) == ("cos", "sin"):
        return of_cos.inputs == of_sin.inputs
    if of_cos.op != of_sin.op or of_cos.attrs != of_sin.attrs:
        return False
    tables = 1 if of_cos.op in ("take", "index") else len(of_cos.inputs)
    if of_cos.op not in _MOVED or of_cos.inputs[tables:] != of_sin.inputs[tables:]:
        return False
    return all(
        turn_by_one_angle(graph, *pair, bits, depth + 1)
        for pair in zip(of_cos.inputs[:tables], of_sin.inputs[:tables], strict=True)
    )


def _whole_pairs(graph: Graph, value: str) -> bool:
    size = graph.type(value).shape[-1]
    return isinstance(size, int) and size % 2 == 0


def _along_last(graph: Graph, node: Node) -> bool:
    last = graph.type(node.inputs[0]).rank - 1
    if node.op == "flip":
        return last in ints_attr(node.attrs, "axes")
    return int_attr(node.attrs, "axis") == last


def _reshaped(graph: Graph, node: Node, pairs: bool) -> bool:
    """Whether rows [..., n, 2], or [..., 2, n], of equal halves were laid out in one row."""
    before, after = graph.type(node.inputs[0]).shape, graph.type(node.output).shape
    if len(before) < 2 or before[-2] * before[-1] != after[-1]:
        return False
    axis = len(before) - 1 if pairs else len(before) - 2
    if before[axis] != 2:
        return False
    inner = graph.producer(node.inputs[0])
    if inner is None:
        return False
    if inner.op == "expand":
        source = graph.type(inner.inputs[0]).shape
        missing = len(before) - len(source)
        return axis < missing or source[axis - missing] == 1
    return (
        inner.op == "concat"
        and int_attr(inner.attrs, "axis") == axis
        and len(set(inner.inputs)) == 1
    )


def _stored(graph: Graph, value: str, pairs: bool) -> bool:
    weight = graph.parameters[value]
    if weight.read is None or weight.nbytes > MAX_TABLE_BYTES or weight.shape[-1] % 2:
        return False
    bits = weight.load()
    if pairs:
        return bool(np.array_equal(bits[..., ::2], bits[..., 1::2]))
    half = weight.shape[-1] // 2
    return bool(np.array_equal(bits[..., :half], bits[..., half:]))
