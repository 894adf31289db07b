"""Inputs for a model, made up but fit for what it does with them.

Token ids stay inside of the table that they index, an integer mask keeps everything, positions
count up, floats are normal and already rounded to the dtype of the input, so that whoever else
computes with them gets the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fusec.dtypes import DTYPES, bf16_to_f32, f32_to_bf16
from fusec.formats import encode
from fusec.ir import Graph, Node
from fusec.ir.text import parse_graph
from fusec.ir.types import int_attr, ints_attr
from fusec.runtime.artifact import Artifact, TensorSpec
from fusec.symbolic import evaluate

Array = NDArray[np.generic]

RESERVED = 3
"""Ids at the beginning of a vocabulary that are seldom text: padding, beginning and end."""

ANY_INTEGER = 8
"""Integers of which nothing is known are from 0 to one below this."""

_SAME_NUMBERS = frozenset(("reshape", "transpose", "expand", "slice", "flip", "concat"))
_COMPARISONS = frozenset(("eq", "ne", "lt", "le", "gt", "ge"))


def artifact_graph(artifact: Artifact) -> Graph:
    """The graph of an artifact, without its weights."""
    return parse_graph(artifact.graph_text(), foreign=True)


def generate_inputs(
    specs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
    seed: int = 0,
    graph: Graph | None = None,
) -> dict[str, Array]:
    """An array for each input, as `Model.run` takes it: `bf16` as float32, `f8` types as bytes.

    Args:
        specs: the inputs, such as `manifest.inputs`.
        sizes: the value of each symbol.
        seed: the same seed gives the same numbers.
        graph: that reads them; says what integers are for.  Without it, integers are small.
    """
    rng = np.random.default_rng(seed)
    return {spec.name: _generated(spec, sizes, rng, graph) for spec in specs}


def _generated(
    spec: TensorSpec, sizes: Mapping[str, int], rng: np.random.Generator, graph: Graph | None
) -> Array:
    shape = tuple(evaluate(dim, sizes) for dim in spec.shape)
    dtype = DTYPES[spec.dtype]
    if spec.dtype == "bool":
        return _flags(shape, rng)
    if dtype.is_integer:
        return _integers(spec.name, shape, sizes, rng, graph).astype(dtype.numpy)
    if spec.dtype == "e8m0":
        return rng.integers(125, 130, size=shape).astype(dtype.numpy)
    if dtype.kind == "packed":
        return rng.integers(0, 256, size=shape).astype(dtype.numpy)
    values = rng.standard_normal(shape)
    if spec.dtype == "bf16":
        return bf16_to_f32(f32_to_bf16(values.astype(np.float32)))
    if dtype.bits == 8:
        return encode(values, spec.dtype)
    return values.astype(dtype.numpy)


def _flags(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Flags of which most are true, the first of each row among them: masks leave something."""
    flags = rng.random(shape) < 0.75
    flags[..., :1] = True
    return flags


def _integers(
    name: str,
    shape: tuple[int, ...],
    sizes: Mapping[str, int],
    rng: np.random.Generator,
    graph: Graph | None,
) -> NDArray[np.int64]:
    if graph is None or not graph.has_value(name):
        return rng.integers(0, ANY_INTEGER, size=shape)
    found = _Uses(graph, sizes)
    found.follow(name)
    if found.bound is not None and found.bound < 1:
        return np.zeros(shape, np.int64)
    if "position" in name:
        counted = np.broadcast_to(np.arange(shape[-1] if shape else 1), shape or (1,))
        return (counted % found.bound if found.bound else counted).reshape(shape)
    if found.bound is not None:
        return rng.integers(min(RESERVED, found.bound - 1), found.bound, size=shape)
    if found.is_flag:
        return np.ones(shape, np.int64)
    return rng.integers(0, ANY_INTEGER, size=shape)


class _Uses:
    """What the integers of a value are used for.

    Attributes:
        bound: all of them must be below it, if they index something.
        is_flag: whether it matters only which of them are 0.
    """

    def __init__(self, graph: Graph, sizes: Mapping[str, int]) -> None:
        self.graph = graph
        self.sizes = sizes
        self.bound: int | None = None
        self.is_flag = False
        self._seen: set[str] = set()

    def follow(self, value: str) -> None:
        """Look at every node that reads `value`, or the same integers in another shape."""
        stack = [value]
        while stack:
            value = stack.pop()
            if value in self._seen:
                continue
            self._seen.add(value)
            for node in self.graph.users(value):
                if self._keeps(node):
                    stack.append(node.output)
                for axis in self._indexed(node, value):
                    size = self.graph.type(node.inputs[0]).shape[axis]
                    self._limit(evaluate(size, self.sizes))
                if node.op in ("moe", "moe_fp8", "moe_mxfp4"):
                    self._limit_experts(node, value)
                self.is_flag = self.is_flag or self._asks_for_zero(node)

    def _limit(self, size: int) -> None:
        self.bound = size if self.bound is None else min(self.bound, size)

    def _keeps(self, node: Node) -> bool:
        if node.op == "cast":
            return self.graph.type(node.output).element.is_integer
        return node.op in _SAME_NUMBERS

    def _indexed(self, node: Node, value: str) -> list[int]:
        """The axes of the first operand along which `value` holds places."""
        rank = self.graph.type(node.inputs[0]).rank if node.inputs else 0
        if node.op in ("take", "gather", "scatter") and node.inputs[1] == value:
            return [int_attr(node.attrs, "axis") % rank]
        if node.op in ("index", "index_put"):
            first = 1 if node.op == "index" else 2
            indices = zip(ints_attr(node.attrs, "axes"), node.inputs[first:], strict=True)
            return [axis % rank for axis, index in indices if index == value]
        return []

    def _limit_experts(self, node: Node, value: str) -> None:
        weights = next(each for each in node.inputs if self.graph.type(each).rank == 3)
        if value in node.inputs:
            self._limit(evaluate(self.graph.type(weights).shape[0], self.sizes))

    def _asks_for_zero(self, node: Node) -> bool:
        to_flag = node.op == "cast" and self.graph.type(node.output).dtype == "bool"
        return to_flag or node.op in _COMPARISONS
