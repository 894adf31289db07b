"""Problems for kernels that walk along sequences and for triangular systems.

The interpreter (`interpreted_recurrent_cases`) and a GPU (`tests/device/test_recurrent`) solve
the same ones; only how a launch is run differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from row_problems import TORCH

from fusec import symbolic
from fusec.ir import OPS, Graph, TensorType
from fusec.ir.types import Attr
from fusec.kernels.launch import Call, Launch, Storage, dense_strides
from fusec.kernels.registry import choose
from fusec.symbolic import Dim, symbol
from fusec.target import Target

Array: TypeAlias = NDArray[np.float64]
Memory: TypeAlias = dict[int, torch.Tensor]
Run: TypeAlias = Callable[[Launch, Memory, Mapping[str, int]], None]

KINDS = {**TORCH, "f64": torch.float64}
"""PyTorch's dtypes."""

ROUNDING = {"f64": 2.0**-48, "f32": 2.0**-20, "bf16": 2.0**-7, "f16": 2.0**-10}
"""What rounding a result may cost, relative to it; Triton's interpreter truncates to bf16."""

SUMMING = {"f64": 1e-14, "f32": 5e-5, "bf16": 2e-4, "f16": 2e-4}
"""What sums may cost, relative to the largest result: differences of sums of large gates lose
digits, and products of 16-bit operands are of halves of f32 that keep 16 bits."""

GUARD = 64
"""Elements before and behind each result, which a kernel leaves alone."""

STEPS = "steps"
"""The symbol that stands for the length of sequences."""


@dataclass(frozen=True)
class Operand:
    """Values, and where they lie.

    Attributes:
        values: before they are rounded to `dtype`.
        dtype: the element type.
        strides: in elements; dense if not given.
        offset: elements before the first one.
        steps: the axis whose size is known at run time only.
    """

    values: Array
    dtype: str = "bf16"
    strides: tuple[int, ...] | None = None
    offset: int = 0
    steps: int | None = None

    def place(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A buffer with NaN beside the values, and the view of it that holds them."""
        strides = self.strides or tuple(map(int, map(str, dense_strides(self.values.shape))))
        pairs = zip(self.values.shape, strides, strict=True)
        extent = self.offset + sum((size - 1) * stride for size, stride in pairs) + 1
        memory = torch.full((extent,), float("nan"), dtype=KINDS[self.dtype])
        place = memory.as_strided(self.values.shape, strides, self.offset)
        place.copy_(torch.from_numpy(self.values))
        return memory, place

    def shape(self) -> tuple[Dim, ...]:
        """Sizes, one of them a symbol."""
        sizes: list[Dim] = list(self.values.shape)
        if self.steps is not None:
            sizes[self.steps] = symbol(STEPS)
        return tuple(sizes)


@dataclass(frozen=True)
class Problem:
    """A node to compute.

    Attributes:
        name: of the test.
        op: the operation.
        operands: what it takes.
        attrs: its attributes.
        order: axes of the result from outermost to innermost in memory.
        gap: elements of the result's rows beyond those that are written.
    """

    name: str
    op: str
    operands: tuple[Operand, ...]
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    order: tuple[int, ...] | None = None
    gap: int = 0

    def __str__(self) -> str:
        return f"{self.name}-{self.operands[0].dtype}"


def solve(problem: Problem, run: Run, target: Target, answer: float = 1.0) -> float:
    """Run the kernel of a problem and check its result against the reference times `answer`.

    Returns:
        The largest error relative to the largest result.
    """
    graph = Graph("case", {STEPS: (1, 1 << 20)})
    memory: Memory = {}
    inputs: list[Storage] = []
    values: list[Array] = []
    sizes: dict[str, int] = {}
    for index, operand in enumerate(problem.operands):
        shape = operand.shape()
        graph.add_input(f"x{index}", TensorType(operand.dtype, shape))
        memory[index], place = operand.place()
        inputs.append(Storage(index, operand.dtype, shape, place.stride(), operand.offset))
        values.append(place.double().numpy())
        if operand.steps is not None:
            sizes[STEPS] = operand.values.shape[operand.steps]
    node = graph.add(problem.op, list(graph.inputs), dict(problem.attrs))
    kernel = choose(graph, node, target).kernel
    assert kernel is not None and kernel.provider == "triton"
    kind = graph.type(node.output)
    result, view = _result(problem, kind, sizes, memory)

    def scratch(dtype: str, shape: tuple[Dim, ...]) -> Storage:
        elements = symbolic.evaluate(symbolic.product(shape), sizes)
        buffer = len(memory)
        memory[buffer] = torch.full((elements,), float("nan"), dtype=KINDS[dtype])
        return Storage(buffer, dtype, shape, dense_strides(shape))

    call = Call(graph, node, target, tuple(inputs), (result,), scratch)
    for launch in kernel.launches(call):
        run(launch, memory, sizes)
    got = view.double().numpy().copy()
    view.fill_(float("nan"))
    assert memory[result.buffer].isnan().all(), "it wrote beside its result"
    (wanted,) = OPS[problem.op].reference(values, node.attrs, (kind,))
    off = np.abs(got - wanted * answer)
    largest = float(np.abs(wanted).max(initial=1e-30))
    summing = SUMMING[problem.operands[0].dtype]
    allowed = ROUNDING[kind.dtype] * np.abs(wanted) + summing * largest
    assert (off <= allowed).all(), f"off by {np.nanmax(off)}, {np.isnan(off).sum()} NaN"
    return float(off.max(initial=0.0)) / largest


def _result(
    problem: Problem, kind: TensorType, sizes: Mapping[str, int], memory: Memory
) -> tuple[Storage, torch.Tensor]:
    """Room for the result, NaN all over, and the view of it that is to be written."""
    shape = tuple(symbolic.evaluate(dim, sizes) for dim in kind.shape)
    order = problem.order or tuple(range(len(shape)))
    within = [shape[axis] for axis in order]
    within[-1] += problem.gap
    steps = np.array([1, *np.cumprod(within[:0:-1])])[::-1]
    strides = [0] * len(shape)
    for axis, step in zip(order, steps, strict=True):
        strides[axis] = int(step)
    buffer = len(memory)
    size = int(np.prod(within)) + 2 * GUARD
    memory[buffer] = torch.full((size,), float("nan"), dtype=KINDS[kind.dtype])
    view = memory[buffer].as_strided(shape, strides, GUARD)
    return Storage(buffer, kind.dtype, kind.shape, tuple(strides), GUARD), view


# --- causal_conv1d --------------------------------------------------------------------------


def conv_problem(
    channels: int,
    steps: int,
    taps: int,
    *,
    layout: str = "channels",
    dtype: str = "bf16",
    bias: bool = False,
    silu: bool = True,
) -> Problem:
    """A filter over x [2, channels, steps].

    Args:
        channels: of x.
        steps: of x.
        taps: of the filter.
        layout: what is innermost in memory: `channels`, `slice` (of rows with other channels),
            `steps`, or `apart` for neither.
        dtype: of everything.
        bias: whether there is one.
        silu: whether it comes behind.
    """
    rng = np.random.default_rng([channels, steps, taps])
    strides = {
        "channels": (steps * channels, 1, channels),
        "slice": (steps * (channels + 16), 1, channels + 16),
        "steps": (channels * steps, steps, 1),
        "apart": (steps * channels * 4, 2, 2 * channels),
    }[layout]
    operands = [
        Operand(rng.standard_normal((2, channels, steps)), dtype, strides, 16, steps=2),
        Operand(rng.standard_normal((channels, taps)), dtype),
    ]
    if bias:
        operands.append(Operand(rng.standard_normal(channels), dtype))
    attrs: dict[str, Attr] = {"activation": "silu" if silu else "none", "has_bias": bias}
    name = f"conv-{channels}x{steps}x{taps}-{layout}"
    order = None if layout == "steps" else (0, 2, 1)
    return Problem(name, "causal_conv1d", tuple(operands), attrs, order, gap=16)


CONV_PROBLEMS = [
    conv_problem(1, 1, 1, dtype="f32", silu=False),
    conv_problem(70, 9, 4, layout="slice", bias=True),
    conv_problem(70, 9, 4, layout="steps", dtype="f16"),
    conv_problem(48, 40, 3, layout="apart", bias=True, silu=False),
    conv_problem(64, 130, 4, dtype="f32"),
    conv_problem(600, 3, 4, bias=True),
    conv_problem(5, 300, 7, layout="steps", dtype="f32", bias=True, silu=False),
]


# --- gated_delta_rule -----------------------------------------------------------------------


def delta_problem(
    steps: int,
    depth: int,
    width: int,
    *,
    batch: int = 1,
    key_heads: int = 1,
    heads: int = 2,
    gate: float = 1.0,
    beta: tuple[float, float] = (0.0, 1.0),
    per_channel: bool = False,
    normalise: bool = True,
    dtype: str = "bf16",
    alike: bool = False,
) -> Problem:
    """A gated delta rule; q, k and v are slices of the rows of a projection.

    Args:
        steps: of the sequence.
        depth: of keys.
        width: of values.
        batch: sequences.
        key_heads: of queries and keys.
        heads: of values.
        gate: gates are between minus this and 0, on either side; where it is over 2, every third is
            near 0.
        beta: its least and its largest value.
        per_channel: whether there is a gate for each channel.
        normalise: whether queries and keys are normed inside.
        dtype: of queries, keys, values and beta.
        alike: whether all keys are the same.
    """
    rng = np.random.default_rng([steps, depth, width, heads])
    row = 2 * key_heads * depth + heads * width
    parts = []
    for part_heads, size, begin in (
        (key_heads, depth, 0),
        (key_heads, depth, key_heads * depth),
        (heads, width, 2 * key_heads * depth),
    ):
        values = rng.standard_normal((batch, steps, part_heads, size))
        parts.append((values, (steps * row, row, size, 1), begin))
    if alike:
        parts[1][0][:] = parts[1][0][:, :1]
    if not normalise:
        parts[1][0][:] /= np.sqrt(np.square(parts[1][0]).sum(-1, keepdims=True))
    gates = -gate * rng.random((batch, steps, heads, *([depth] if per_channel else [])))
    if gate > 2:
        gates.reshape(-1)[::3] = -1e-3
    low, high = beta
    betas = low + (high - low) * rng.random((batch, steps, heads))
    operands = tuple(
        Operand(values, dtype, strides, begin, steps=1) for values, strides, begin in parts
    )
    operands += (Operand(gates, "f32", steps=1), Operand(betas, dtype, steps=1))
    attrs: dict[str, Attr] = {
        "scale": depth**-0.5,
        "eps": 1e-6 if normalise else 0.0,
        "qk_l2_norm": normalise,
    }
    kind = "channels" if per_channel else "heads"
    name = f"delta-{batch}x{steps}x{heads}-{depth}x{width}-{kind}-{gate:g}-{low:g}to{high:g}"
    return Problem(name, "gated_delta_rule", operands, attrs, gap=4)


DELTA_PROBLEMS = [
    problem
    for per_channel in (False, True)
    for problem in (
        delta_problem(1, 16, 16, batch=2, per_channel=per_channel),
        delta_problem(5, 8, 8, key_heads=2, heads=4, per_channel=per_channel, dtype="f32"),
        delta_problem(64, 32, 16, gate=1e-4, beta=(1.0, 1.0), per_channel=per_channel),
        delta_problem(70, 16, 64, gate=20.0, per_channel=per_channel, normalise=False),
        delta_problem(130, 32, 32, heads=1, gate=0.1, per_channel=per_channel, dtype="f16"),
        delta_problem(
            64, 16, 16, heads=1, gate=0.0, alike=True, per_channel=per_channel, dtype="f32"
        ),
        delta_problem(70, 24, 40, gate=20.0, per_channel=per_channel, dtype="f32"),
        delta_problem(70, 64, 32, beta=(0.0, 0.0), per_channel=per_channel),
        delta_problem(20, 96, 16, heads=1, gate=20.0, per_channel=per_channel),
        delta_problem(66, 16, 16, heads=1, gate=-0.02, per_channel=per_channel, dtype="f32"),
    )
]


# --- selective_scan -------------------------------------------------------------------------


def scan_problem(
    channels: int,
    states: int,
    steps: int,
    *,
    batch: int = 1,
    heads: int = 0,
    groups: int = 1,
    decay: float = 4.0,
    dtype: str = "bf16",
) -> Problem:
    """A selective scan; b and c are slices of the rows of a projection.

    Args:
        channels: of the sequence.
        states: of a channel.
        steps: of the sequence.
        batch: sequences.
        heads: that share steps of time and decays; 0 where each state of a channel has its decay.
        groups: that share b and c.
        decay: decays are between minus this and 0.
        dtype: of all but the steps of time and the decays.
    """
    rng = np.random.default_rng([channels, states, steps])
    row = 3 + 2 * groups * states
    slices = (steps * row, row, states, 1)
    sequence, state = (batch, steps, channels), (batch, steps, groups, states)
    rates = (batch, steps, heads or channels)
    wider = (steps * (channels + 5), channels + 5, 1)
    operands = (
        Operand(rng.standard_normal(sequence), dtype, wider, 2, steps=1),
        Operand(rng.random(rates), "f32", steps=1),
        Operand(-decay * rng.random((heads, 1) if heads else (channels, states)), "f32"),
        Operand(rng.standard_normal(state), dtype, slices, 3, steps=1),
        Operand(rng.standard_normal(state), dtype, slices, 3 + groups * states, steps=1),
    )
    name = f"scan-{batch}x{channels}x{steps}-{heads}x{groups}x{states}-{decay:g}"
    return Problem(name, "selective_scan", operands, gap=6)


SCAN_PROBLEMS = [
    scan_problem(1, 1, 1, dtype="f32"),
    scan_problem(70, 16, 9, batch=2),
    scan_problem(64, 5, 40, dtype="f32"),
    scan_problem(3, 256, 7, dtype="f16"),
    scan_problem(48, 20, 1, heads=3),
    scan_problem(72, 24, 133, batch=2, heads=6, groups=3, dtype="f32"),
    scan_problem(80, 16, 70, heads=2),
    scan_problem(35, 9, 66, heads=5, decay=100.0, dtype="f16"),
    scan_problem(20, 130, 40, heads=2, groups=2, decay=0.1),
]


# --- solve_triangular -----------------------------------------------------------------------


def solve_problem(
    rows: int,
    columns: int,
    batch: tuple[int, ...] = (),
    *,
    upper: bool = False,
    unit: bool = False,
    transposed: bool = False,
    shared: bool = False,
    dtype: str = "f32",
) -> Problem:
    """A system, with random values on the side of its triangle that is not read.

    Args:
        rows: of the system.
        columns: of the right side.
        batch: sizes of the outer axes.
        upper: which triangle counts.
        unit: whether the diagonal is taken to be ones.
        transposed: whether columns of A are innermost in memory.
        shared: whether all systems have the same A.
        dtype: of everything.
    """
    rng = np.random.default_rng([rows, columns, *batch])
    outer = () if shared else batch
    a = rng.standard_normal((*outer, rows, rows)) / rows
    a += (2 + rng.random((*outer, rows, 1))) * np.eye(rows)
    strides = None
    if transposed:
        *steps, row, column = (int(str(step)) for step in dense_strides(a.shape))
        strides = (*steps, column, row)
    operands = (
        Operand(a, dtype, strides, offset=3),
        Operand(rng.standard_normal((*batch, rows, columns)), dtype, steps=len(batch) + 1),
    )
    attrs: dict[str, Attr] = {"upper": upper, "unit_diagonal": unit, "left": True}
    name = f"solve-{'x'.join(map(str, batch))}-{rows}x{columns}-{'upper' if upper else 'lower'}"
    return Problem(name, "solve_triangular", operands, attrs, gap=5)


SOLVE_PROBLEMS = [
    solve_problem(1, 1),
    solve_problem(64, 70, (2,)),
    solve_problem(33, 5, (2, 3), upper=True, transposed=True),
    solve_problem(24, 24, (2, 1, 2), unit=True, shared=True),
    solve_problem(7, 65, (3,), upper=True, unit=True, dtype="f64"),
]
