"""Products of floats with random operands, laid out as kernels meet them, and the answers.

An operand lies in memory with its axes in any order and its rows apart; what lies between them is
NaN.  The answers are those of the operations' references in f64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from gemm_problems import GUARD, SUMMING_F32, Bytes, Made, Operand
from gemm_problems import ROUNDING as ROUNDING_FLOATS
from numpy.typing import NDArray

from fusec import symbolic
from fusec.dtypes import DTYPES, bf16_to_f32, f32_to_bf16
from fusec.ir import OPS, Graph, TensorType
from fusec.ir.types import Attr
from fusec.kernels.launch import Storage, dense_strides
from fusec.symbolic import Dim, symbol
from fusec.target import target_named

ROUNDING = {**ROUNDING_FLOATS, "f64": 2.0**-52, "i64": 0.0, "i32": 0.0}
"""What rounding a result may cost, relative to it."""

SUMMING = {"f64": 2.0**-48, "i64": 0.0, "i32": 0.0}
"""What summing may cost, relative to the sum of magnitudes; else it is `SUMMING_F32`."""


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
    plain = {**problem.attrs, **({"activation": "none"} if "activation" in problem.attrs else {})}
    (magnitude,) = OPS[problem.op].reference(magnitudes, plain, (kind,))
    dims: tuple[Dim, ...] = wanted.shape
    outer = [step * (wanted.shape[-1] + problem.gap) for step in dense_strides(dims[:-1])]
    result = Storage(len(operands), kind.dtype, kind.shape, (*outer, 1), GUARD)
    lines = int(np.prod(wanted.shape[:-1]))
    size = 2 * GUARD + lines * (wanted.shape[-1] + problem.gap)
    allowed = (
        ROUNDING[kind.dtype] * np.abs(wanted) + SUMMING.get(problem.dtype, SUMMING_F32) * magnitude
    )
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


def extreme(problem: Dense) -> Made:
    """`problem` with NaN, infinities and large numbers in its first operand, and its answer.

    They are in places of their own, so that no sum is the difference of two infinities.
    """
    made = make(problem)
    x = made.operands[0]
    dtype = x.storage.dtype
    largest = {"f32": 2.0e37, "bf16": 2.0e37, "f16": 60000.0}[dtype]
    flat = _numbers(x.memory, dtype).copy()
    held = np.flatnonzero(~np.isnan(flat))
    places = held[:: max(1, len(held) // 7)][:5]
    flat[places] = (np.nan, np.inf, -np.inf, largest, -largest)
    bits, numbers = _bits(flat, dtype)
    x.memory = bits.view(np.uint8)
    offsets = _offsets(x)
    values = [numbers[offsets], *(operand.values for operand in made.operands[1:])]
    kind = (made.graph.type(made.node.output),)
    with np.errstate(invalid="ignore", over="ignore"):
        (made.wanted,) = OPS[problem.op].reference(values, problem.attrs, kind)
        made.wanted = _bits(made.wanted, made.result.dtype)[1]
        (magnitude,) = OPS[problem.op].reference([*map(np.abs, values)], problem.attrs, kind)
        rounding, summing = ROUNDING[made.result.dtype], SUMMING.get(dtype, SUMMING_F32)
        made.allowed = rounding * np.abs(made.wanted) + summing * magnitude
    return made


def _offsets(operand: Operand) -> NDArray[np.int64]:
    """Where each element lies in memory."""
    shape = operand.values.shape
    offsets = np.zeros(shape, dtype=np.int64)
    for axis, step in enumerate(operand.storage.strides):
        along = np.arange(shape[axis]) * symbolic.evaluate(step, {})
        offsets += along.reshape([-1 if each == axis else 1 for each in range(len(shape))])
    return offsets


def check(made: Made, memory: Bytes, answer: float = 1.0) -> None:
    """Compare the memory of the result with what is wanted times `answer`.

    All of it was 0xFF before; beside the result it still has to be.
    """
    itemsize = DTYPES[made.result.dtype].itemsize
    shape, row = made.wanted.shape, symbolic.evaluate(made.result.strides[-2], made.sizes)
    lines = memory[GUARD * itemsize : -GUARD * itemsize].reshape(-1, row * itemsize)
    begin = shape[-1] * itemsize
    outside = (memory[: GUARD * itemsize], lines[:, begin:], memory[-GUARD * itemsize :])
    assert all((part == 0xFF).all() for part in outside), "it wrote beside its result"
    found = _numbers(np.ascontiguousarray(lines[:, :begin]), made.result.dtype).reshape(shape)
    wanted = made.wanted * answer
    same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
    with np.errstate(invalid="ignore"):
        off = np.where(same, 0, np.abs(found - wanted))
    assert (same | (off <= made.allowed)).all(), (
        f"off by {np.nanmax(off)}, {np.isnan(off).sum()} NaN"
    )


def _numbers(memory: Bytes, dtype: str) -> NDArray[Any]:
    """The numbers in memory."""
    if dtype == "bf16":
        return bf16_to_f32(memory.view(np.uint16)).astype(np.float64)
    numbers = memory.view(DTYPES[dtype].numpy)
    return numbers.astype(np.float64) if DTYPES[dtype].is_float else numbers


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


def epilogue(
    target: str,
    dtype: str,
    rows: tuple[int | str, ...],
    n: int,
    k: int,
    activation: str,
    *,
    bias: bool = False,
    residual: bool = False,
    wide: bool = False,
    **rest: Any,
) -> Dense:
    """A linear and what follows it; the residual has rows that are apart."""
    operands = [Held((*rows, k)), Held((n, k))]
    if bias:
        operands.append(Held((n,)))
    if residual:
        operands.append(Held((*rows, n), dtype="f32" if wide else "", gap=3))
    attrs: dict[str, Attr] = {"dtype": "f32"} if wide else {}
    attrs |= {"activation": activation, "has_bias": bias, "has_residual": residual}
    note = rest.pop("note", activation)
    return Dense("linear_epilogue", target, dtype, tuple(operands), attrs, note=note, **rest)


def epilogue_problems(target: str) -> list[Dense]:
    """Each activation and the residual, with sums that are split and that are not."""
    return [
        epilogue(target, "bf16", (3,), 40, 1056, "silu", bias=True, residual=True),
        epilogue(target, "f16", (130,), 33, 64, "gelu", residual=True, gap=5),
        epilogue(target, "f32", (17,), 48, 1040, "gelu_tanh", bias=True),
        epilogue(target, "f32", (514,), 24, 48, "quick_gelu"),
        epilogue(target, "bf16", (514,), 41, 32, "relu", bias=True, residual=True),
        epilogue(target, "bf16", (2, 9), 64, 96, "none", residual=True, wide=True),
        epilogue(target, "bf16", ("t",), 64, 96, "none", residual=True, sizes={"t": 70}),
    ]


def matmul(target: str, dtype: str, a: Held, b: Held, **rest: Any) -> Dense:
    """A product of batches of matrices."""
    return Dense("matmul", target, dtype, (a, b), **rest)


def matmul_problems(target: str) -> list[Dense]:
    """Batches that are broadcast, merged or apart; either operand transposed; each dtype."""
    turned, inner = (0, 2, 1), (0, 2, 1, 3)
    return [
        matmul(target, "bf16", Held((3, 17, 64)), Held((3, 64, 40))),
        matmul(target, "bf16", Held((17, 33)), Held((33, 65), gap=3), gap=5),
        matmul(target, "bf16", Held((2, 70, 96)), Held((2, 96, 64), order=turned), note="bT"),
        matmul(target, "f16", Held((2, 70, 96), order=turned), Held((2, 96, 64)), note="aT"),
        matmul(
            target,
            "f16",
            Held((2, 3, 5, 32), order=inner),
            Held((2, 3, 32, 19), order=(0, 3, 1, 2)),
            note="heads",
        ),
        matmul(target, "f32", Held((2, 1, 1, 1, 9, 20)), Held((1, 3, 1, 2, 20, 7))),
        matmul(target, "bf16", Held((4, 130, 16)), Held((16, 130), broadcast=()), note="many"),
        matmul(target, "f32", Held((2, 6, 1), broadcast=()), Held((2, 1, 35))),
        matmul(target, "f32", Held((2, 130, 40), broadcast=(0,)), Held((2, 40, 33))),
        matmul(target, "bf16", Held((5, 1, 128), gap=8), Held((5, 128, 64)), note="gap"),
        matmul(
            target,
            "f32",
            Held(("b", 2, "s", 24), order=inner),
            Held(("b", 2, 24, "s"), order=(0, 3, 1, 2)),
            sizes={"b": 2, "s": 67},
            note="late",
        ),
        matmul(
            target,
            "bf16",
            Held(("b", 2, "s", "s")),
            Held(("b", 2, "s", 32), order=inner),
            sizes={"b": 1, "s": 5},
            note="late",
        ),
    ]


def late_linear(target: str, dtype: str, **rest: Any) -> Dense:
    """A linear whose weight has a size that is known at run time only."""
    operands = (Held((2, 3, "k"), gap=2), Held(("n", "k"), order=(1, 0)), Held(("n",)))
    return Dense("linear", target, dtype, operands, sizes={"n": 37, "k": 50}, **rest)


def grouped(
    target: str, dtype: str, rows: int | str, n: int, k: int, ends: tuple[int, ...], **rest: Any
) -> Dense:
    """Stretches of `rows` of `k` elements, each with its own weight [k, n]."""
    order, x_gap, offsets = rest.pop("order", ()), rest.pop("x_gap", 0), rest.pop("offsets", "i32")
    weights = Held((len(ends), k, n), order=order)
    last = Held((len(ends),), dtype=offsets, values=ends)
    operands = (Held((rows, k), gap=x_gap), weights, last)
    return Dense("grouped_mm", target, dtype, operands, **rest)


def grouped_problems(target: str) -> list[Dense]:
    """Empty stretches, long ones, rows behind the last, weights in either order."""
    return [
        grouped(target, "bf16", 40, 48, 64, (3, 3, 40), order=(0, 2, 1)),
        grouped(target, "bf16", 70, 33, 37, (0, 35, 35, 35, 64), x_gap=3, gap=5),
        grouped(target, "f16", 9, 64, 32, (0, 0, 0), offsets="i64", note="none"),
        grouped(target, "f32", 300, 40, 24, (130, 131, 299)),
        grouped(target, "bf16", "t", 40, 64, (1, 200, 260), sizes={"t": 261}, note="late"),
        grouped(target, "bf16", "t", 40, 64, (1, 2, 3), sizes={"t": 3}, note="late"),
    ]


def conv(
    target: str,
    dtype: str,
    x: Held,
    filters: int,
    kernel: tuple[int, ...],
    *,
    stride: tuple[int, ...] = (),
    padding: tuple[int, ...] = (),
    dilation: tuple[int, ...] = (),
    groups: int = 1,
    bias: bool = False,
    **rest: Any,
) -> Dense:
    """A convolution of x [batch, channels, ...]."""
    channels = x.shape[1]
    assert isinstance(channels, int)
    operands = [x, Held((filters, channels // groups, *kernel))]
    if bias:
        operands.append(Held((filters,)))
    ones, zeros = (1,) * len(kernel), (0,) * len(kernel)
    attrs: dict[str, Attr] = {
        "stride": stride or ones,
        "padding": padding or zeros,
        "dilation": dilation or ones,
        "groups": groups,
    }
    note = "-".join(["k" + "x".join(map(str, kernel)), rest.pop("note", "")])
    return Dense("conv", target, dtype, tuple(operands), attrs, note=note, **rest)


def followed(
    conv: Dense, activation: str, *, norm: bool = False, residual: tuple[int | str, ...] = ()
) -> Dense:
    """`conv`, which has no bias, with what may follow it; a residual of the shape of the result."""
    per_filter = Held((conv.operands[1].shape[0],), dtype="f32")
    operands = [*conv.operands, *([per_filter] * 2 if norm else [])]
    if residual:
        operands.append(Held(residual))
    attrs: dict[str, Attr] = {
        **conv.attrs,
        "activation": activation,
        "has_scale": norm,
        "has_bias": norm,
        "has_residual": bool(residual),
    }
    return replace(conv, op="conv_epilogue", operands=tuple(operands), attrs=attrs)


def conv_problems(target: str) -> list[Dense]:
    """Patches, groups, one filter a group; one to three axes; padded, strided; followed."""
    last = (0, 2, 3, 1)
    return [
        conv(target, "bf16", Held((5, 3, 2, 14, 14)), 40, (2, 14, 14), stride=(2, 14, 14)),
        conv(target, "f32", Held((70, 3, 4)), 33, (4,), bias=True, note="patch"),
        conv(target, "bf16", Held((2, 3, 32, 48)), 72, (16, 16), stride=(16, 16), bias=True),
        conv(target, "f16", Held((1, 3, 28, 29), order=last), 24, (14, 14), stride=(14, 14)),
        conv(target, "f32", Held((2, 5, 19)), 17, (3,), padding=(1,), stride=(2,), bias=True),
        conv(target, "f32", Held((2, 8, 9, 7)), 20, (3, 2), padding=(2, 1), dilation=(2, 3)),
        conv(target, "bf16", Held((1, 12, 4, 5, 6)), 30, (2, 3, 3), padding=(1, 0, 1), groups=3),
        conv(target, "f32", Held((2, 6, 40), order=(0, 2, 1)), 6, (4,), padding=(3,), groups=6),
        conv(target, "bf16", Held((1, 4, 6, 7)), 8, (3, 3), padding=(1, 1), groups=4, bias=True),
        conv(target, "f64", Held((1, 2, 9)), 10, (3,), padding=(1,), bias=True),
        conv(
            target,
            "f32",
            Held(("b", 4, "t")),
            32,
            (3,),
            stride=(2,),
            padding=(1,),
            sizes={"b": 2, "t": 71},
        ),
        conv(target, "f16", Held(("b", 3, "t")), 3, (2,), groups=3, sizes={"b": 2, "t": 300}),
        followed(conv(target, "f32", Held((2, 5, 19)), 17, (3,)), "relu", norm=True),
        followed(
            conv(target, "bf16", Held((2, 8, 9, 7), order=last), 20, (3, 2)),
            "hardswish",
            norm=True,
            residual=(2, 20, 7, 6),
        ),
        followed(
            conv(target, "f16", Held(("b", 12, "t")), 24, (1,), sizes={"b": 2, "t": 71}),
            "none",
            residual=("b", 24, "t"),
        ),
        followed(
            conv(target, "bf16", Held((2, 6, 40)), 6, (4,), groups=6),
            "relu6",
            norm=True,
            residual=(2, 6, 37),
        ),
    ]
