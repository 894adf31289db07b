"""What is computed from weights alone is computed when the artifact is written.

Fuses   an operation all of whose operands are weights, or made of weights   into   a weight

Models do such things in every run: `-exp(A_log)`, a router's weight cast to f32, weights side by
side, a bias for relative positions looked up in a table or made by a small network.  What is
rounded in the model is rounded here.  The result is a weight like any other: its values are made
when they are written, and a source without values has none for it either.  What only looks at a
weight differently stays: it costs nothing.

Leaves alone what would need more than 4 times the bytes of the weights it is made of, and more than
1 MiB: a table is better computed than read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from fusec.ir import OPS, Attr, Graph, Node, TensorType, Weight
from fusec.ir.interpret import encoded, widen
from fusec.ir.weights import Bits, computed
from fusec.rewrite import DecisionLog, Pass
from fusec.symbolic import Expr
from fusec.target import Target

DTYPES = ("f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8", "u8", "bool")
MOVES = ("concat", "pad", "take")
PRODUCTS = ("linear", "linear_epilogue", "matmul")
REDUCTIONS = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod")
VIEWS = ("reshape", "transpose", "slice", "expand", "flip")
TABLES = ("constant", "iota")

GROWTH = 4
LITTLE = 1 << 20


@dataclass(frozen=True, slots=True)
class _Held:
    """A value that is known when the artifact is written.

    Attributes:
        weight: its elements.
        stored: bytes of the weights of the source that it is made of; 0 for a table.
    """

    weight: Weight
    stored: int


class FoldWeights(Pass):
    """Follows values from the weights on, as long as nothing else is read."""

    name: ClassVar[str] = "fold_weights"
    rounds: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("linear_epilogue", "conv_epilogue")

    def run(self, graph: Graph, target: Target, log: DecisionLog) -> int:
        """Change `graph` in place and say how many nodes became weights."""
        held = {
            value: _Held(weight, weight.nbytes)
            for value, weight in graph.parameters.items()
            if weight.memory_shape == weight.shape
        }
        folded: list[Node] = []
        for node in graph.nodes():
            if (found := _result(graph, node, held)) is None:
                continue
            held[node.output] = found
            if found.stored and node.op not in VIEWS:
                folded.append(node)
        for node in folded:
            made = graph.add_parameter(graph.fresh(node.output), held[node.output].weight)
            graph.replace_uses(node.output, made)
        log.absorb(node.name for node in folded)
        graph.prune()
        graph.drop_unused_parameters()
        return len(folded)


def _result(graph: Graph, node: Node, held: dict[str, _Held]) -> _Held | None:
    """What `node` gives, if it is known when the artifact is written, and not too large."""
    if not _is_arithmetic(node) or any(value not in held for value in node.inputs):
        return None
    kind, *types = (graph.type(value) for value in (node.output, *node.inputs))
    if any(each.dtype not in DTYPES for each in (kind, *types)):
        return None
    if kind.padded is not None or not _is_fixed((kind.shape, *node.attrs.values())):
        return None
    operands = tuple(held[value] for value in node.inputs)
    stored = sum({each.weight.identity: each.stored for each in operands}.values())
    parts = tuple(each.weight for each in operands)
    how = f"{node.op} {dict(sorted(node.attrs.items()))}" if node.attrs else node.op
    name = f"{parts[0].name}.{node.op}" if parts else node.output
    weight = computed(name, kind, how, parts, partial(_computed, node, kind, types))
    return _Held(weight, stored) if weight.nbytes <= max(LITTLE, GROWTH * stored) else None


def _is_arithmetic(node: Node) -> bool:
    """Whether the result of `node` is known where its operands are."""
    if node.op in (*MOVES, *PRODUCTS, *REDUCTIONS, *VIEWS, *TABLES):
        return True
    return node.op in OPS and OPS[node.op].elementwise


def _is_fixed(held: Attr) -> bool:
    """Whether no size that is known only at run time is in `held`."""
    if isinstance(held, tuple):
        return all(_is_fixed(item) for item in held)
    return not isinstance(held, Expr)


def _computed(
    node: Node, kind: TensorType, types: Sequence[TensorType], operands: Sequence[Bits]
) -> Bits:
    """The elements of the result of `node`, rounded as it rounds them."""
    wide = [widen(bits, each.dtype) for bits, each in zip(operands, types, strict=True)]
    with np.errstate(all="ignore"):
        (result,) = OPS[node.op].reference(wide, node.attrs, (kind,))
        return np.asarray(encoded(result, kind.dtype), order="C")
