"""Products of floats with random operands, laid out as kernels meet them, and the answers.

An operand lies in memory with its axes in any order and its rows apart; what lies between them is
NaN.  The answers are those of the operations' references in f64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gemm_problems import GUARD, ROUNDING, SUMMING_F32, Made, Operand
from numpy.typing import NDArray

from fusec.dtypes import DTYPES, bf16_to_f32, f32_to_bf16
from fusec.ir import OPS, Graph, TensorType
from fusec.ir.types import Attr
from fusec.kernels.launch import Storage, dense_strides
from fusec.symbolic import Dim, symbol
from fusec.target import target_named

SUMMING = {"f16": 2.0**-18, "bf16": 2.0**-18, "f32": SUMMING_F32}
"""What summing may cost, relative to the sum of magnitudes."""


@dataclass(frozen=True)
class Held:
    """An operand.

    Attributes:
        shape: sizes; a name is one known at run time only.
        dtype: of its elements; the problem's where "".
        order: axes from outermost to innermost in memory; in order where empty.
        gap: elements between rows in memory.
        broadcast: axes along which all elements are one in memory.
        values: its elements, where they are not random.
    """

    shape: tuple[int | str, ...]
    dtype: str = ""
    order: tuple[int, ...] = ()
    gap: int = 0
    broadcast: tuple[int, ...] = ()
    values: tuple[int, ...] = ()


@dataclass(frozen=True)
class Dense:
    """A product.

    Attributes:
        op: the operation.
        target: for what.
        dtype: of its operands.
        operands: in order.
        attrs: of the operation.
        sizes: of names in shapes.
        gap: elements between rows of the result.
        spread: rows of the first operand are scaled by powers of two up to this one.
        note: the end of its name.
    """

    op: str
    target: str
    dtype: str
    operands: tuple[Held, ...]
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    gap: int = 0
    spread: int = 4
    note: str = ""

    def __str__(self) -> str:
        """The name of its test."""
        shapes = ["x".join(map(str, each.shape)) for each in self.operands]
        words = [self.op, self.target, self.dtype, *shapes, self.note]
        return "-".join(filter(None, words))


def make(problem: Dense, seed: int = 0) -> Made:
    """Random operands for `problem`."""
    rng = np.random.default_rng([seed, len(str(problem))])
    graph = Graph("case", {name: (1, 4096) for name in problem.sizes})
    operands: list[Operand] = []
    for index, held in enumerate(problem.operands):
        operand = _operand(problem, held, index, rng)
        operands.append(operand)
        graph.add_input(f"x{index}", TensorType(operand.storage.dtype, operand.storage.shape))
    node = graph.add(problem.op, list(graph.inputs), problem.attrs)
    kind = graph.type(node.output)
    values = [operand.values for operand in operands]
    (wanted,) = OPS[problem.op].reference(values, problem.attrs, (kind,))
    magnitudes = [np.abs(each) for each in values]
    (magnitude,) = OPS[problem.op].reference(magnitudes, problem.attrs, (kind,))
    dims: tuple[Dim, ...] = wanted.shape
    outer = [step * (wanted.shape[-1] + problem.gap) for step in dense_strides(dims[:-1])]
    result = Storage(len(operands), kind.dtype, kind.shape, (*outer, 1), GUARD)
    lines = int(np.prod(wanted.shape[:-1]))
    size = 2 * GUARD + lines * (wanted.shape[-1] + problem.gap)
    allowed = ROUNDING[kind.dtype] * np.abs(wanted) + SUMMING[problem.dtype] * magnitude
    return Made(
        graph,
        node,
        target_named(problem.target),
        operands,
        result,
        size * DTYPES[kind.dtype].itemsize,
        dict(problem.sizes),
        wanted,
        allowed,
    )


def _operand(problem: Dense, held: Held, index: int, rng: np.random.Generator) -> Operand:
    dtype = held.dtype or problem.dtype
    shape = tuple(problem.sizes[size] if isinstance(size, str) else size for size in held.shape)
    named: tuple[Dim, ...] = tuple(
        symbol(size) if isinstance(size, str) else size for size in held.shape
    )
    if held.values:
        raw: NDArray[Any] = np.array(held.values).reshape(shape)
    else:
        raw = rng.standard_normal(shape)
        if index == 0:
            raw *= 2.0 ** rng.integers(-problem.spread, problem.spread + 1, (*shape[:-1], 1))
    for axis in held.broadcast:
        raw = np.broadcast_to(raw.take([0], axis), shape)
    bits, values = _bits(raw, dtype)
    order = held.order or tuple(range(len(shape)))
    in_memory = [1 if axis in held.broadcast else shape[axis] for axis in order]
    in_memory[-1] += held.gap
    memory = np.full(in_memory, _nan(dtype), dtype=bits.dtype)
    steps = dense_strides(tuple(in_memory))
    strides: list[Dim] = [0] * len(shape)
    for step, axis in zip(steps, order, strict=True):
        strides[axis] = 0 if axis in held.broadcast else step
    for axis in held.broadcast:
        bits = bits.take([0], axis)
    memory[..., : in_memory[-1] - held.gap] = np.transpose(bits, order)
    storage = Storage(index, dtype, named, tuple(strides))
    flat = np.ascontiguousarray(memory).reshape(-1).view(np.uint8)
    return Operand(storage, flat, values)


def _bits(raw: NDArray[Any], dtype: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Elements in memory, and the numbers they stand for."""
    if dtype == "bf16":
        bits: NDArray[Any] = f32_to_bf16(raw.astype(np.float32))
        return bits, bf16_to_f32(bits).astype(np.float64)
    bits = raw.astype(DTYPES[dtype].numpy)
    return bits, bits.astype(np.float64) if DTYPES[dtype].is_float else bits


def _nan(dtype: str) -> Any:
    """What lies between rows: NaN, or an index beyond any bound."""
    if dtype == "bf16":
        return 0x7FC0
    return np.nan if DTYPES[dtype].is_float else 2**31 - 1


# --- problems -------------------------------------------------------------------------------


def linear(
    target: str,
    dtype: str,
    rows: tuple[int | str, ...],
    n: int,
    k: int,
    *,
    bias: bool = False,
    wide: bool = False,
    x_gap: int = 0,
    **rest: Any,
) -> Dense:
    """A product of `rows` of `k` elements with a weight [n, k]."""
    operands = [Held((*rows, k), gap=x_gap), Held((n, k))]
    if bias:
        operands.append(Held((n,)))
    attrs: dict[str, Attr] = {"dtype": "f32"} if wide else {}
    return Dense("linear", target, dtype, tuple(operands), attrs, **rest)


def linear_problems(target: str) -> list[Dense]:
    """Few rows to many, sizes that are odd or not, each dtype."""
    return [
        linear(target, "bf16", (1,), 64, 1024, bias=True),
        linear(target, "bf16", (3,), 40, 2112, x_gap=16, gap=8),
        linear(target, "f16", (17,), 33, 95, bias=True, gap=5),
        linear(target, "bf16", (65,), 130, 96, wide=True),
        linear(target, "f32", (130,), 129, 80, bias=True),
        linear(target, "f32", (1,), 65, 1031, x_gap=3),
        linear(target, "bf16", (2, 65), 48, 160, x_gap=7, bias=True),
        linear(target, "f16", (514,), 72, 64, wide=True, bias=True),
        linear(target, "f32", (514,), 40, 33, gap=1),
        linear(target, "bf16", (514,), 41, 72, bias=True),
    ]
