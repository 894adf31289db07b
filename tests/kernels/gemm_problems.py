"""Products of narrow formats with random operands, laid out as kernels meet them, and the answers.

Codes are random bytes (but for NaN) and scales span many magnitudes; rows are apart in memory, and
what lies between them is NaN, or what no kernel may show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusec import symbolic
from fusec.dtypes import DTYPES, bf16_to_f32, f32_to_bf16
from fusec.formats import (
    QUANT_MAX,
    Scaling,
    decode,
    expand_blocks,
    fp8_scaling,
    mx_scaling,
    unpack_e2m1,
)
from fusec.ir import OPS, Graph, Node, TensorType
from fusec.ir.ops.quantised import dequantised
from fusec.ir.types import Attr
from fusec.kernels.launch import Storage, dense_strides
from fusec.symbolic import Dim, symbol
from fusec.target import Target, target_named

ROUNDING = {"f32": 2.0**-22, "bf16": 2.0**-7, "f16": 2.0**-10}
"""What rounding a result may cost, relative to it; Triton's interpreter truncates to bf16."""

SUMMING = {"fp8_linear-sm_90": 2.0**-9}
"""What summing may cost, relative to the sum of magnitudes, by operation and target; else it is
`SUMMING_F32`.  Hopper's 8-bit matrix units keep some 14 bits of a sum (DeepSeek-V3 Technical
Report, section 3.3.2)."""

SUMMING_F32 = 2.0**-18

GUARD = 64
"""Elements before and behind each result."""

NAN_CODES = {
    "f8e4m3fn": (0x7F, 0xFF),
    "f8e4m3fnuz": (0x80,),
    "f8e5m2": (*range(0x7C, 0x80), *range(0xFC, 0x100)),
    "f4e2m1x2": (),
}
"""Codes that are no finite number."""

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Problem:
    """A product.

    Attributes:
        op: `fp8_linear` or `mxfp4_linear`.
        target: for what.
        rows: sizes of x but the last; -1 is one size known at run time only.
        columns: N.
        length: K.
        scaling: of x, or `None` for floats.
        block: rows and columns of the weight that share a scale.
        x_dtype: of x if it is floats.
        dtype: of the result.
        bias: dtype of the bias, or "".
        padded: N and K of the weight in memory.
        gap: elements between rows of x and of the result.
        zeros: whether every second row of x is zeros.
        spread: scales are between 2^(centre - spread) and 2^(centre + spread + 1).
        centre: see `spread`.
    """

    op: str
    target: str
    rows: tuple[int, ...]
    columns: int
    length: int
    scaling: Scaling | None = None
    block: tuple[int, int] = (1, 32)
    x_dtype: str = "bf16"
    dtype: str = "bf16"
    bias: str = ""
    padded: tuple[int, int] | None = None
    gap: int = 16
    zeros: bool = False
    spread: int = 8
    centre: int = 0

    def __str__(self) -> str:
        """The name of its test."""
        shape = [*self.rows, self.columns, self.length]
        kind = "floats" if self.scaling is None else self.scaling.granularity
        return f"{self.op}-{self.target}-{kind}-{'x'.join(map(str, shape))}-{self.dtype}"


@dataclass
class Operand:
    """An operand: its bits in memory as bytes, and the numbers they stand for."""

    storage: Storage
    memory: Bytes
    values: NDArray[Any]


@dataclass
class Made:
    """A problem with random operands, and what is wanted.

    Attributes:
        graph: with the node.
        node: the product.
        target: for what.
        operands: in order.
        result: where the result goes; its rows are apart, and nothing else is written.
        result_bytes: of the memory of the result.
        sizes: of the symbols.
        wanted: the result by the reference, in f64.
        allowed: how far the result may be off, at each element.
    """

    graph: Graph
    node: Node
    target: Target
    operands: list[Operand]
    result: Storage
    result_bytes: int
    sizes: dict[str, int]
    wanted: NDArray[np.float64]
    allowed: NDArray[np.float64]

    def check(self, memory: Bytes, answer: float = 1.0) -> None:
        """Compare the memory of the result with what is wanted times `answer`."""
        floats = to_floats(memory, self.result.dtype)
        shape = tuple(symbolic.evaluate(dim, self.sizes) for dim in self.result.shape)
        row = symbolic.evaluate(self.result.strides[-2], {})
        rows = int(np.prod(shape[:-1]))
        begin = symbolic.evaluate(self.result.offset, {})
        lines = floats[begin : begin + rows * row].reshape(rows, row)
        outside = (floats[:begin], lines[:, shape[-1] :], floats[begin + rows * row :])
        assert all(np.isnan(part).all() for part in outside), "it wrote beside its result"
        off = np.abs(lines[:, : shape[-1]].reshape(shape) - self.wanted * answer)
        assert (off <= self.allowed).all(), f"off by {np.nanmax(off)}, {np.isnan(off).sum()} NaN"


def make(problem: Problem, seed: int = 0) -> Made:
    """Random operands for `problem`."""
    rng = np.random.default_rng([seed, *problem.rows[1:], problem.columns, problem.length])
    rows = tuple(37 if size == -1 else size for size in problem.rows)
    return make_rows(problem, rows, rng)


def make_rows(problem: Problem, rows: tuple[int, ...], rng: np.random.Generator) -> Made:
    """Random operands for `problem` with as many `rows` of x."""
    symbols = {"rows": rows[0]} if -1 in problem.rows else {}
    named: tuple[Dim, ...] = tuple(symbol("rows") if size == -1 else size for size in problem.rows)
    operands = [*_activations(problem, rows, named, rng), *_weights(problem, rng)]
    if problem.bias:
        values = rng.standard_normal(problem.columns)
        operands.append(_floats(values, problem.bias, (problem.columns,), 0))
    graph = Graph("case", {"rows": (1, 4096)})
    for index, operand in enumerate(operands):
        kind = TensorType(operand.storage.dtype, operand.storage.shape)
        if index in _weight_places(problem) and problem.padded is not None:
            kind = TensorType(kind.dtype, kind.shape, _padded(problem, kind))
        graph.add_input(f"x{index}", kind)
        operand.storage = _numbered(operand.storage, index)
    attrs: dict[str, Attr] = {"dtype": problem.dtype, "has_bias": bool(problem.bias)}
    if problem.scaling is not None:
        attrs |= problem.scaling.attrs()
    if problem.op == "fp8_linear":
        attrs |= {"weight_block": problem.block}
    else:
        attrs |= {"has_x_scale": problem.scaling is not None}
    node = graph.add(problem.op, list(graph.inputs), attrs)
    (wanted,) = OPS[problem.op].reference(
        [operand.values for operand in operands], attrs, (graph.type(node.output),)
    )
    stride = problem.columns + problem.gap
    lines = int(np.prod(rows))
    result = Storage(
        len(operands),
        problem.dtype,
        (*named, problem.columns),
        (*_outer(rows, stride), 1),
        GUARD,
    )
    size = (2 * GUARD + lines * stride) * DTYPES[problem.dtype].itemsize
    summing = SUMMING.get(f"{problem.op}-{problem.target}", SUMMING_F32)
    allowed = ROUNDING[problem.dtype] * np.abs(wanted) + summing * _magnitude(problem, operands)
    target = target_named(problem.target)
    return Made(graph, node, target, operands, result, size, symbols, wanted, allowed)


def every_code(target: str) -> Made:
    """Each code of e2m1 with each scale up to 2**113, times a one: the result is the weight."""
    made = make(Problem("mxfp4_linear", target, (32,), 241, 32, dtype="f32", gap=0))
    codes = np.tile(np.arange(16, dtype=np.uint8), 2)
    pairs, scale = codes[::2] | codes[1::2] << 4, np.arange(241, dtype=np.uint8)
    ones = f32_to_bf16(np.eye(32, dtype=np.float32)).view(np.uint8)
    for operand, memory in zip(made.operands, (ones, np.tile(pairs, 241), scale), strict=True):
        operand.memory = memory.reshape(-1)
    made.wanted = np.outer(unpack_e2m1(pairs), decode(scale, "e8m0"))
    made.allowed = np.zeros_like(made.wanted)
    return made


def to_floats(memory: Bytes, dtype: str) -> NDArray[Any]:
    """The numbers in memory of f32, bf16 or f16."""
    if dtype == "bf16":
        return bf16_to_f32(memory.view(np.uint16))
    return memory.view(np.float32 if dtype == "f32" else np.float16)


def _magnitude(problem: Problem, operands: list[Operand]) -> NDArray[np.float64]:
    """The sums of the magnitudes of what is summed."""
    x, *rest = operands
    if problem.scaling is None:
        wide = np.abs(x.values)
    else:
        wide = np.abs(dequantised(x.values, rest.pop(0).values, problem.scaling))
    codes = unpack_e2m1(rest[0].values) if problem.op == "mxfp4_linear" else rest[0].values
    weight = np.abs(codes * expand_blocks(rest[1].values, problem.block, codes.shape))
    bias = np.abs(rest[2].values) if problem.bias else 0.0
    return np.asarray(wide @ weight.T + bias)


def _activations(
    problem: Problem, rows: tuple[int, ...], named: tuple[Dim, ...], rng: np.random.Generator
) -> list[Operand]:
    scaling, length = problem.scaling, problem.length
    if scaling is None:
        values = rng.standard_normal((*rows, length)) * 2.0 ** rng.integers(-6, 7, (*rows, 1))
        if problem.zeros:
            values.reshape(-1, length)[::2] = 0
        return [_named(_floats(values, problem.x_dtype, (*rows, length), problem.gap), named)]
    columns = length // 2 if scaling.packed else length
    codes = _codes(scaling.dtype, (*rows, columns), rng)
    if problem.zeros:
        codes.reshape(-1, columns)[::2] = 0
    x = _named(_bytes(codes, scaling.dtype, problem.gap), named)
    if scaling.granularity == "tensor":
        return [x, _scales(scaling.scale_dtype, (1,), problem, rng)]
    groups = length // scaling.group if scaling.granularity == "group" else 1
    if scaling.layout == "row":
        return [x, _named(_scales(scaling.scale_dtype, (*rows, groups), problem, rng), named)]
    scale = _scales(scaling.scale_dtype, (groups, int(np.prod(rows))), problem, rng)
    whole = (groups, symbolic.product(named))
    scale.storage = Storage(0, scale.storage.dtype, whole, scale.storage.strides)
    return [x, scale]


def _weights(problem: Problem, rng: np.random.Generator) -> list[Operand]:
    pack = 2 if problem.op == "mxfp4_linear" else 1
    if pack == 2:
        dtype = "f4e2m1x2"
    else:
        assert problem.scaling is not None
        dtype = problem.scaling.dtype
    n, k = problem.columns, problem.length
    codes = _codes(dtype, (n, k // pack), rng)
    is_mx = problem.block == (1, 32)
    blocks = (-(-n // problem.block[0]), -(-k // problem.block[1]))
    weight = _bytes(codes, dtype, 0)
    scale = _scales("e8m0" if is_mx else "f32", blocks, problem, rng)
    if problem.padded is None:
        return [weight, scale]
    rows, columns = problem.padded
    return [_pad(weight, rows, columns // pack, 0), _pad(scale, rows, columns // 32, 0x7F)]


def _codes(dtype: str, shape: tuple[int, ...], rng: np.random.Generator) -> Bytes:
    codes = rng.integers(0, 256, shape, dtype=np.uint8)
    for nan in NAN_CODES[dtype]:
        codes[codes == nan] = 1
    return codes


def _scales(
    dtype: str, shape: tuple[int, ...], problem: Problem, rng: np.random.Generator
) -> Operand:
    powers = problem.centre + rng.integers(-problem.spread, problem.spread + 1, shape)
    if dtype == "e8m0":
        return _bytes((powers + 127).astype(np.uint8), "e8m0", 0)
    return _floats(2.0**powers * rng.uniform(1, 2, shape), "f32", shape, 0)


def _bytes(bits: Bytes, dtype: str, gap: int) -> Operand:
    values = bits.astype(np.float64) if dtype == "f4e2m1x2" else decode(bits, dtype)
    return _laid_out(bits, values, dtype, gap, 0xFF)


def _floats(values: NDArray[Any], dtype: str, shape: tuple[int, ...], gap: int) -> Operand:
    single = values.astype(np.float32)
    if dtype == "bf16":
        bits: NDArray[Any] = f32_to_bf16(single)
        read = bf16_to_f32(bits).astype(np.float64)
    else:
        bits = single.astype(DTYPES[dtype].numpy)
        read = bits.astype(np.float64)
    return _laid_out(bits, read, dtype, gap, 0xFF)


def _laid_out(
    bits: NDArray[Any], values: NDArray[Any], dtype: str, gap: int, between: int
) -> Operand:
    """Rows `gap` elements apart, with bytes `between` there."""
    row = bits.shape[-1] + gap
    memory = np.full((*bits.shape[:-1], row * bits.itemsize), between, dtype=np.uint8)
    memory[..., : bits.shape[-1] * bits.itemsize] = np.ascontiguousarray(bits).view(np.uint8)
    strides = (*_outer(bits.shape[:-1], row), 1)
    return Operand(Storage(0, dtype, bits.shape, strides), memory.reshape(-1), values)


def _pad(operand: Operand, rows: int, columns: int, fill: int) -> Operand:
    memory = np.full((rows, columns), fill, dtype=np.uint8)
    shape = operand.values.shape
    memory[: shape[0], : shape[1]] = operand.memory.reshape(shape)
    storage = Storage(0, operand.storage.dtype, shape, (columns, 1))
    return Operand(storage, memory.reshape(-1), operand.values)


def _outer(sizes: tuple[int, ...], row: int) -> tuple[Dim, ...]:
    """Strides of the outer axes where rows are `row` elements apart."""
    return tuple(step * row for step in dense_strides(sizes))


def _named(operand: Operand, rows: tuple[Dim, ...]) -> Operand:
    held = operand.storage
    storage = Storage(0, held.dtype, (*rows, held.shape[-1]), held.strides)
    return Operand(storage, operand.memory, operand.values)


def _numbered(storage: Storage, buffer: int) -> Storage:
    return Storage(buffer, storage.dtype, storage.shape, storage.strides, storage.offset)


def _weight_places(problem: Problem) -> tuple[int, int]:
    first = 1 if problem.scaling is None else 2
    return first, first + 1


def _padded(problem: Problem, kind: TensorType) -> tuple[Dim, ...]:
    assert problem.padded is not None
    rows, columns = problem.padded
    return rows, columns // (2 if kind.dtype == "f4e2m1x2" else 32)


# --- problems -------------------------------------------------------------------------------

FN = "f8e4m3fn"


def fp8_problems(target: str) -> list[Problem]:
    """Each granularity of scales, odd sizes."""
    fp8 = target_named(target).fp8
    assert fp8 is not None and fp8 in QUANT_MAX
    group = fp8_scaling(fp8, "group", group=128)
    column = fp8_scaling(fp8, "group", group=128, layout="column")
    odd = fp8_scaling(fp8, "group", group=96)
    token, tensor = fp8_scaling(fp8, "token"), fp8_scaling(fp8, "tensor")

    def problem(rows: tuple[int, ...], n: int, k: int, **rest: Any) -> Problem:
        return Problem("fp8_linear", target, rows, n, k, **rest)

    return [
        problem((1,), 200, 1152, scaling=group, block=(128, 128), bias="f32"),
        problem((3,), 128, 384, scaling=column, block=(128, 128), zeros=True),
        problem((17,), 72, 384, scaling=group, block=(64, 128), dtype="f32"),
        problem((64,), 130, 256, scaling=group, block=(48, 128), dtype="f32", zeros=True),
        problem((129,), 257, 384, scaling=group, block=(128, 128), dtype="f32", bias="bf16"),
        problem((3, 43), 129, 384, scaling=column, block=(128, 128)),
        problem((1,), 65, 2880, scaling=token, block=(1, 2880), bias="bf16", dtype="f32"),
        problem((17,), 33, 96, scaling=token, block=(1, 96), dtype="f32", zeros=True),
        problem((129,), 130, 608, scaling=token, block=(1, 608), bias="f32"),
        problem((2, 65), 100, 352, scaling=tensor, block=(100, 352), dtype="f32"),
        problem((64,), 100, 1696, scaling=tensor, block=(100, 1696), bias="f32", spread=2),
        problem((5,), 36, 256, scaling=token, block=(128, 128), dtype="f32"),
        problem((5,), 36, 256, scaling=group, block=(1, 256), dtype="f32"),
        problem((5,), 36, 288, scaling=odd, block=(128, 128), dtype="f32"),
        problem((514,), 130, 256, scaling=group, block=(128, 128), bias="f32"),
        problem((514,), 40, 224, scaling=token, block=(1, 224), dtype="f32"),
        problem((3,), 40, 128, scaling=token, block=(1, 128), dtype="f16", spread=1, centre=-5),
    ]


def mx_problems(target: str) -> list[Problem]:
    """Codes with e8m0 scales on both sides."""
    wide, narrow = mx_scaling(FN), mx_scaling("f4e2m1x2")

    def fp8(rows: tuple[int, ...], n: int, k: int, **rest: Any) -> Problem:
        return Problem("fp8_linear", target, rows, n, k, wide, **rest)

    def fp4(rows: tuple[int, ...], n: int, k: int, scaling: Scaling, **rest: Any) -> Problem:
        return Problem("mxfp4_linear", target, rows, n, k, scaling, **rest)

    return [
        fp8((1,), 65, 2880, bias="f32", dtype="f32"),
        fp8((17,), 40, 96, zeros=True),
        fp8((129,), 130, 608, dtype="f32", bias="bf16"),
        fp4((1,), 65, 2880, wide, bias="bf16", dtype="f32", padded=(256, 3072)),
        fp4((3,), 70, 2880, narrow, dtype="f32", padded=(256, 3072), spread=30),
        fp4((17,), 33, 32, narrow, zeros=True),
        fp4((64,), 100, 1312, wide, dtype="f32"),
        fp4((2, 65), 200, 608, narrow, dtype="f32", bias="f32"),
        fp4((129,), 130, 352, wide, padded=(256, 512)),
        fp4((514,), 40, 160, narrow, dtype="f32"),
        fp8((514,), 40, 160),
    ]


def dequant_problems(target: str) -> list[Problem]:
    """A weight of 4-bit floats, x floats."""

    def problem(rows: tuple[int, ...], n: int, k: int, **rest: Any) -> Problem:
        return Problem("mxfp4_linear", target, rows, n, k, **rest)

    return [
        problem((1,), 65, 2880, bias="bf16", dtype="f32", padded=(256, 3072)),
        problem((1,), 65, 2880, bias="bf16", padded=(256, 3072), x_dtype="f16"),
        problem((3,), 70, 1120, dtype="f32", spread=40, zeros=True),
        problem((17,), 33, 32, x_dtype="f32", dtype="f32"),
        problem((64,), 100, 672, x_dtype="f16", dtype="f32", spread=60),
        problem((2, 65), 200, 352, dtype="f32", bias="f32"),
        problem((129,), 130, 96, x_dtype="f32", dtype="f32", padded=(256, 256)),
        problem((129,), 40, 2880, padded=(256, 3072)),
        problem((514,), 40, 160, dtype="f32", zeros=True),
        problem((2,), 24, 64, x_dtype="f16", dtype="f16", spread=1),
    ]
