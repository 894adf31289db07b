"""Problems for kernels that read or write where indices say: operands in memory, and the result.

The interpreter (`interpreted_index_cases.py`) and a GPU (`tests/device`) solve the same problems;
only how a launch is run differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch

from fusec import symbolic
from fusec.dtypes import DTYPES, bf16_to_f32
from fusec.formats import decode
from fusec.ir import OPS, Graph, Node, TensorType
from fusec.ir.types import Attr
from fusec.kernels.launch import Call, Launch, Layout, Storage, dense_strides
from fusec.kernels.registry import Kernel, kernels
from fusec.symbolic import Dim
from fusec.target import Target

Array: TypeAlias = np.ndarray[Any, Any]
Memory: TypeAlias = dict[int, torch.Tensor]
"""Bytes of each buffer."""
Run: TypeAlias = Callable[[Launch, Memory], None]

GUARD = 256
"""Bytes before and behind each result, which a kernel leaves alone."""

FILL = 0xFF
"""Every byte of a result before a launch, and of what lies between elements of an operand."""


@dataclass(frozen=True)
class Given:
    """An operand: elements as they are stored, and whether they lie apart from each other."""

    values: Array
    dtype: str
    apart: bool = False


@dataclass(frozen=True)
class Problem:
    """A node to compute.

    Attributes:
        op: the operation.
        operands: what it takes.
        attrs: its attributes.
        apart: whether the results lie apart, where the kernel can write them so.
    """

    op: str
    operands: tuple[Given, ...]
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    apart: bool = False

    def __str__(self) -> str:
        shapes = ["x".join(map(str, given.values.shape)) for given in self.operands]
        attrs = [str(value) for value in self.attrs.values()]
        return "-".join((self.op, self.operands[0].dtype, *shapes, *attrs))


@dataclass(frozen=True)
class Answer:
    """What a kernel wrote: results as they are stored, and the word of an index out of range."""

    results: tuple[Array, ...]
    error: int

    @property
    def wrong_index(self) -> tuple[int, int]:
        """The index out of range and the bound that it is not below."""
        low = self.error & 0xFFFFFFFF
        return low - (low >> 31 << 32), self.error >> 32


def triton_record(op: str) -> Kernel:
    """The record of the Triton kernel that computes `op`."""
    return next(kernel for kernel in kernels()[op] if kernel.provider == "triton")


def graph_of(problem: Problem) -> tuple[Graph, Node]:
    """A graph of the operation alone."""
    graph = Graph("case")
    names = [
        graph.add_input(f"x{i}", TensorType(given.dtype, given.values.shape))
        for i, given in enumerate(problem.operands)
    ]
    return graph, graph.add(problem.op, names, dict(problem.attrs))


def solve(problem: Problem, run: Run, target: Target) -> Answer:
    """Run the kernel of a problem, and look that it wrote nothing around its results."""
    graph, node = graph_of(problem)
    record = triton_record(problem.op)
    refused = record.supports(graph, node, target)
    assert refused is None, refused
    layouts = record.layouts(graph, node)
    memory: Memory = {}
    inputs = []
    for given, layout in zip(problem.operands, layouts, strict=False):
        storage = _placed(memory, given.dtype, given.values.shape, given.apart, layout)
        _seen(memory, storage)[...] = given.values
        inputs.append(storage)
    outputs = []
    for value, layout in zip(node.outputs, layouts[len(inputs) :], strict=True):
        kind = graph.type(value)
        shape = tuple(symbolic.evaluate(dim, {}) for dim in kind.shape)
        outputs.append(_placed(memory, kind.dtype, shape, problem.apart, layout))
    error = _placed(memory, "i64", (1,), False, "contiguous")
    _seen(memory, error)[...] = 0

    def scratch(dtype: str, shape: tuple[Dim, ...]) -> Storage:
        sizes = tuple(symbolic.evaluate(dim, {}) for dim in shape)
        return _placed(memory, dtype, sizes, False, "contiguous")

    call = Call(graph, node, target, tuple(inputs), tuple(outputs), scratch, lambda: error)
    for launch in record.launches(call):
        if all(symbolic.evaluate(size, {}) for size in launch.grid):
            run(launch, memory)
    for storage in outputs:
        _look_around(memory, storage)
    results = tuple(_seen(memory, storage).copy() for storage in outputs)
    return Answer(results, int(_seen(memory, error)[0]))


def wanted(problem: Problem) -> tuple[Array, ...]:
    """What the reference of the operation gives."""
    graph, node = graph_of(problem)
    kinds = tuple(graph.type(value) for value in node.outputs)
    arrays = [wide(given.values, given.dtype) for given in problem.operands]
    return tuple(OPS[problem.op].reference(arrays, node.attrs, kinds))


def wide(values: Array, dtype: str) -> Array:
    """Stored elements as numbers that numpy computes with."""
    if dtype == "bf16":
        return bf16_to_f32(values)
    return decode(values, dtype) if dtype.startswith("f8") else values


def check_answer(problem: Problem, given: Answer) -> None:
    """The result is exactly that of the reference, and no index is out of range."""
    assert given.error == 0
    (got,), (want,) = given.results, wanted(problem)
    np.testing.assert_array_equal(wide(got, problem.operands[0].dtype), want)


def random(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Array:
    """Small whole numbers with many ties, as they are stored."""
    rng = np.random.default_rng(seed + len(shape))
    if dtype in ("bf16", "f8e4m3fn"):
        bits = np.asarray([0x3F80, 0xBF80, 0x4040, 0x0000, 0x8000, 0x4200])
        codes = bits if dtype == "bf16" else bits & 0x7F
        return rng.choice(codes, shape).astype(DTYPES[dtype].numpy)
    low, high = (0, 2) if dtype == "bool" else (0, 9) if dtype == "u8" else (-9, 9)
    return rng.integers(low, high, shape).astype(DTYPES[dtype].numpy)


def indices(shape: tuple[int, ...], bound: int, dtype: str = "i64", apart: bool = False) -> Given:
    """Indices from either end."""
    rng = np.random.default_rng(bound)
    return Given(rng.integers(-bound, bound, shape).astype(DTYPES[dtype].numpy), dtype, apart)


def order_of(x: Array, descending: bool, axis: int) -> Array:
    """Where elements go, NaN above every number, and equal ones in the order they had."""
    ranks = np.searchsorted(np.unique(x), x)
    return np.argsort(-ranks if descending else ranks, axis, kind="stable")


def _placed(
    memory: Memory, dtype: str, shape: Sequence[int], apart: bool, layout: Layout
) -> Storage:
    """A new buffer of `FILL` and a place in it; `apart` turns the axes and leaves gaps."""
    size = DTYPES[dtype].itemsize
    strides: tuple[Dim, ...] = dense_strides(tuple(shape))
    if apart and layout == "strided":
        strides = tuple(reversed(dense_strides(tuple(2 * each + 1 for each in reversed(shape)))))
    extent = 1 + sum(
        (each - 1) * symbolic.evaluate(step, {}) for each, step in zip(shape, strides, strict=True)
    )
    memory[len(memory)] = torch.full((extent * size + 2 * GUARD,), FILL, dtype=torch.uint8)
    return Storage(len(memory) - 1, dtype, tuple(shape), strides, GUARD // size)


def _seen(memory: Memory, storage: Storage) -> Array:
    """The elements of a storage, in its buffer."""
    kind = DTYPES[storage.dtype]
    buffer = memory[storage.buffer].numpy()
    steps = [symbolic.evaluate(step, {}) * kind.itemsize for step in storage.strides]
    shape = [symbolic.evaluate(size, {}) for size in storage.shape]
    return np.ndarray(shape, kind.numpy, buffer, GUARD, steps)


def _look_around(memory: Memory, storage: Storage) -> None:
    """Nothing but the elements of a result may have been written."""
    copy = {storage.buffer: memory[storage.buffer].clone()}
    seen = _seen(copy, storage)
    seen.view(np.uint8 if seen.dtype.itemsize == 1 else seen.dtype)[...] = 0
    between = copy[storage.buffer]
    size = int(np.prod(seen.shape)) * seen.dtype.itemsize
    assert int((between != FILL).sum()) == size, "the kernel wrote around its result"
