"""Problems for kernels on rows: operands in memory, a launch, and the check of what it wrote.

The interpreter (`interpreted_*_cases.py`) and a GPU (`tests/device`) solve the same problems; only
how a launch is run differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import torch

from fusec import symbolic
from fusec.dtypes import DTYPES
from fusec.formats import (
    Scaling,
    decode,
    encode,
    magnitudes,
    pack_e2m1,
    rounded,
    unpack_e2m1,
)
from fusec.ir import OPS, Graph, Node, TensorType
from fusec.ir.ops.base import Array
from fusec.ir.types import Attr, bool_attr, ints_attr
from fusec.kernels.launch import Call, Launch, Storage, dense_strides
from fusec.kernels.registry import Kernel, kernels
from fusec.target import Target

TORCH = {
    "f64": torch.float64,
    "i64": torch.int64,
    "i32": torch.int32,
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f8e4m3fn": torch.float8_e4m3fn,
    "f8e4m3fnuz": torch.float8_e4m3fnuz,
    "f4e2m1x2": torch.uint8,
    "e8m0": torch.uint8,
}

TOLERANCE = {"f64": 1e-13, "f32": 2e-5, "bf16": 1.0 / 128, "f16": 2e-3}
"""Relative to the largest value: what rounding the result once costs, with f32 in between."""

SCALE_TOLERANCE = 1e-5
"""Relative: what f32 costs a scale."""

EQUAL_CODES = 0.99
"""The share of codes that are the nearest ones: f32 moves some values across the middle of two."""

TIE = 1e-6
"""Relative: how near to the middle of two codes a value may be taken for either."""

GUARD = 64
"""Elements before and behind each result, which a kernel leaves alone."""

Memory: TypeAlias = dict[int, torch.Tensor]
Run: TypeAlias = Callable[[Launch, Memory], None]


@dataclass(frozen=True)
class Operand:
    """A random operand, and where it lies.

    Attributes:
        shape: sizes.
        dtype: the element type.
        pitch: elements from row to row; 0 where rows are dense.
        offset: elements before the first one.
        step: elements from one column to the next.
        within: the operand whose buffer this one is in, too.
    """

    shape: tuple[int, ...]
    dtype: str = "bf16"
    pitch: int = 0
    offset: int = 0
    step: int = 1
    within: int | None = None

    @property
    def strides(self) -> tuple[int, ...]:
        """Elements between neighbours along each axis."""
        pitch = self.pitch or self.shape[-1] * self.step
        outer = [pitch]
        for size in reversed(self.shape[1:-1]):
            outer.append(outer[-1] * size)
        return (*reversed(outer[: len(self.shape) - 1]), self.step)

    @property
    def extent(self) -> int:
        """Elements of the buffer that it needs."""
        rows = int(np.prod(self.shape[:-1]))
        return self.offset + rows * max(self.pitch, self.shape[-1] * self.step)


@dataclass(frozen=True)
class Problem:
    """A node to compute.

    Attributes:
        op: the operation.
        operands: what it takes.
        attrs: its attributes.
        scale: of the random values.
        special: rows that are replaced: `zeros`, `tiny`, `infinite`; all of them by turns with
            `extreme`.
    """

    op: str
    operands: tuple[Operand, ...]
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    scale: float = 1.0
    special: str = ""

    def __str__(self) -> str:
        shapes = "x".join(map(str, self.operands[0].shape))
        kinds = [self.operands[0].dtype]
        for key in ("quant_dtype", "granularity", "group", "scale_layout", "scale_rounding"):
            if key in self.attrs:
                kinds.append(str(self.attrs[key]))
        return "-".join((self.op, shapes, *kinds, *([self.special] if self.special else ())))


def quantised(problem: Problem, scaling: Scaling, **attrs: Attr) -> Problem:
    """`problem` with its result quantised; a given scale where the granularity is `tensor`."""
    static = scaling.granularity == "tensor"
    given = (Operand((1,), "f32"),) if static else ()
    return replace(
        problem,
        op=f"{problem.op}_quant",
        operands=(*problem.operands, *given),
        attrs={
            **problem.attrs,
            **scaling.attrs(),
            "has_scale": static,
            "with_plain": False,
            **attrs,
        },
    )


def triton_record(op: str) -> Kernel:
    """The record of the Triton kernel that computes `op`."""
    return next(kernel for kernel in kernels()[op] if kernel.provider == "triton")


def solve(
    problem: Problem,
    run: Run,
    target: Target,
    seed: int,
    answer: float = 1.0,
    provider: str = "triton",
) -> None:
    """Run the kernel of a problem and check each result against the reference times `answer`."""
    print(f"{problem} on {target.name}, seed {seed}")
    rng = np.random.default_rng(seed)
    graph = Graph("case")
    names = [
        graph.add_input(f"x{i}", TensorType(operand.dtype, operand.shape))
        for i, operand in enumerate(problem.operands)
    ]
    node = graph.add(problem.op, names, dict(problem.attrs))
    record = next(kernel for kernel in kernels()[problem.op] if kernel.provider == provider)
    refused = record.supports(graph, node, target)
    assert refused is None, refused
    memory: Memory = {}
    arrays = _fill(problem, memory, rng)
    inputs = tuple(
        Storage(
            i if operand.within is None else operand.within,
            operand.dtype,
            operand.shape,
            operand.strides,
            operand.offset,
        )
        for i, operand in enumerate(problem.operands)
    )
    outputs = tuple(
        _result(graph, node, i, len(names) + i, memory) for i in range(len(node.outputs))
    )
    for launch in record.launches(Call(graph, node, target, inputs, outputs)):
        run(launch, memory)
    given = {buffer: memory[buffer] for buffer in range(len(names), len(names) + len(outputs))}
    for tensor in given.values():
        around = torch.cat((tensor[:GUARD], tensor[-GUARD:])).view(torch.uint8)
        assert (around == 0xFF).all(), "the kernel wrote around its result"
    results = [_values(storage, given[storage.buffer][GUARD:-GUARD]) for storage in outputs]
    with np.errstate(all="ignore"):
        _Check(problem, node, graph, arrays, results, answer).check()


def _fill(problem: Problem, memory: Memory, rng: np.random.Generator) -> list[Array]:
    """Random operands in `memory`, NaN between them; and their values."""
    extents: dict[int, int] = {}
    for i, operand in enumerate(problem.operands):
        buffer = i if operand.within is None else operand.within
        extents[buffer] = max(extents.get(buffer, 0), operand.extent)
    for buffer, extent in extents.items():
        dtype = TORCH[problem.operands[buffer].dtype]
        size = torch.empty(0, dtype=dtype).element_size() * extent
        memory[buffer] = torch.full((size,), 0xFF, dtype=torch.uint8).view(dtype)
    arrays = []
    for i, operand in enumerate(problem.operands):
        memory_of = memory[i if operand.within is None else operand.within]
        place = torch.as_strided(memory_of, operand.shape, operand.strides, operand.offset)
        arrays.append(_random(problem, operand, place, rng))
    return arrays


def _random(
    problem: Problem, operand: Operand, place: torch.Tensor, rng: np.random.Generator
) -> Array:
    shape = operand.shape
    if operand.dtype == "e8m0":
        place.copy_(torch.from_numpy(rng.integers(115, 131, shape).astype(np.uint8)))
        return decode(place.numpy(), "e8m0")
    if operand.dtype == "f4e2m1x2":
        place.copy_(torch.from_numpy(rng.integers(0, 256, shape).astype(np.uint8)))
        return place.numpy().astype(np.int64)
    if operand.dtype.startswith("f8"):
        bits = encode(rng.standard_normal(shape) * 50, operand.dtype)
        place.view(torch.uint8).copy_(torch.from_numpy(bits))
        return decode(bits, operand.dtype)
    values = rng.standard_normal(shape) * problem.scale
    if operand.shape == (1,) and operand.dtype == "f32":
        values = np.abs(values) / 40 + 0.01  # the scale of a tensor
    if len(shape) > 1:
        values = _special(problem.special, values, rng)
    place.copy_(torch.from_numpy(values))
    return place.double().numpy()


def _special(special: str, values: Array, rng: np.random.Generator) -> Array:
    rows = values.reshape(-1, values.shape[-1])
    kinds = ("zeros", "tiny", "infinite", "") if special == "extreme" else (special,)
    for index, row in enumerate(rows):
        kind = kinds[index % len(kinds)]
        if kind == "zeros":
            row[:] = 0
        if kind == "tiny":
            row *= 1e-40
        if kind == "infinite":
            row[rng.integers(len(row))] = np.inf
    return values


def _result(graph: Graph, node: Node, index: int, buffer: int, memory: Memory) -> Storage:
    kind = graph.type(node.outputs[index])
    shape = tuple(symbolic.evaluate(dim, {}) for dim in kind.shape)
    size = (int(np.prod(shape)) + 2 * GUARD) * DTYPES[kind.dtype].itemsize
    memory[buffer] = torch.full((size,), 0xFF, dtype=torch.uint8).view(TORCH[kind.dtype])
    return Storage(buffer, kind.dtype, shape, dense_strides(shape), GUARD)


def _values(storage: Storage, tensor: torch.Tensor) -> Array:
    shape = tuple(symbolic.evaluate(dim, {}) for dim in storage.shape)
    if storage.dtype in ("e8m0", "f4e2m1x2") or storage.dtype.startswith("f8"):
        bits = tensor.view(torch.uint8).numpy().reshape(shape)
        return bits if storage.dtype == "f4e2m1x2" else decode(bits, storage.dtype)
    return tensor.double().numpy().reshape(shape)


class _Check:
    """Compares results with those of the reference."""

    def __init__(
        self,
        problem: Problem,
        node: Node,
        graph: Graph,
        arrays: list[Array],
        results: list[Array],
        answer: float,
    ) -> None:
        self.problem = problem
        self.attrs = node.attrs
        self.kinds = [graph.type(value) for value in node.outputs]
        self.arrays = arrays
        self.results = results
        self.answer = answer
        self.wanted = OPS[node.op].reference(arrays, node.attrs, tuple(self.kinds))

    def check(self) -> None:
        """Every result."""
        narrow = self._narrow()
        scales = () if self.attrs.get("has_scale") else tuple(index + 1 for index in narrow)
        for index, (got, want) in enumerate(zip(self.results, self.wanted, strict=True)):
            if index not in narrow and index not in scales:
                self._check_plain(got, want * self.answer, self.kinds[index].dtype)
        for index, plain in narrow.items():
            self._check_narrow(index, plain * self.answer)

    def _narrow(self) -> dict[int, Array]:
        """What the results that are codes stand for before they are quantised, by index."""
        op = self.problem.op
        if op == "quantize":
            return {0: self.arrays[0]}
        if not op.endswith("_quant"):
            return {}
        arrays = self.arrays[:-1] if self.attrs.get("has_scale") else self.arrays
        base = op.removesuffix("_quant")
        plain = OPS[base].reference(arrays, self.attrs, tuple(self.kinds))
        if base == "dual_rms_norm":
            return (
                {0: plain[0], 2: plain[1]} if self.attrs["quantises"] == "both" else {0: plain[0]}
            )
        seen = self.attrs.get("shape")
        return {0: plain[0] if seen is None else plain[0].reshape(ints_attr(self.attrs, "shape"))}

    def _check_plain(self, got: Array, want: Array, dtype: str) -> None:
        finite = np.abs(want[np.isfinite(want)])
        least = (
            0.1 if self.problem.op.startswith("gelu") else 1e-30
        )  # far below zero 1 + erf cancels
        largest = max(float(np.max(finite, initial=0.0)), least)
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE[dtype] * largest)

    def _check_narrow(self, index: int, plain: Array) -> None:
        scaling = Scaling.of(self.attrs)
        computed = self.problem.op != "quantize"
        codes = unpack_e2m1(self.results[index]) if scaling.packed else self.results[index]
        if bool_attr(self.attrs, "has_scale"):
            scale = self.arrays[-1]
        else:
            scale = self.results[index + 1]
            if scaling.layout == "column":
                scale = scale.T.reshape(*plain.shape[:-1], -1)
            self._check_scale(scaling, scale, plain, SCALE_TOLERANCE if computed else 1e-6)
        wide = scaling.expanded(scale, plain.shape)
        exact = np.clip(plain / wide, -scaling.maximum, scaling.maximum)
        nearest, *beside = (
            unpack_e2m1(pack_e2m1(near)) if scaling.packed else rounded(near, scaling.dtype)
            for near in (exact, exact * (1 - TIE), exact * (1 + TIE))
        )
        equal = (codes == nearest) | (np.isnan(codes) & np.isnan(nearest))
        # Values of few bits over a scale that is a power of two are often ties, and go either way.
        equal |= (codes == beside[0]) | (codes == beside[1])
        differ = int(np.count_nonzero(~equal))
        assert differ <= max(1, (1 - EQUAL_CODES) * equal.size), f"{differ} of {equal.size} differ"
        assert (np.isnan(codes) == np.isnan(nearest)).all()
        steps = np.abs(_ordinal(codes, scaling.dtype) - _ordinal(nearest, scaling.dtype))
        assert steps.max(initial=0) <= 1, "codes are more than one step away"

    def _check_scale(self, scaling: Scaling, got: Array, plain: Array, tolerance: float) -> None:
        """As the largest magnitude says, or one that is nearly as large."""
        if scaling.granularity == "token":
            top = np.max(np.abs(plain), axis=-1, keepdims=True)
        else:
            missing = -plain.shape[-1] % scaling.group
            whole = np.pad(np.abs(plain), [(0, 0)] * (plain.ndim - 1) + [(0, missing)])
            top = np.max(whole.reshape(*plain.shape[:-1], -1, scaling.group), axis=-1)
        slack = tolerance if scaling.rounding != "none" and tolerance > 1e-6 else 0.0
        low, high = scaling.scale(top * (1 - slack)), scaling.scale(top * (1 + slack))
        near = 0.0 if scaling.rounding != "none" else tolerance
        assert got.shape == low.shape
        fits = (got >= low * (1 - near)) & (got <= high * (1 + near))
        assert fits.all(), f"scales {got[~fits][:4]} are not in {low[~fits][:4]}..{high[~fits][:4]}"


def _ordinal(values: Array, dtype: str) -> Array:
    """The place of each value among all of `dtype`; NaN is put with 0."""
    values = np.nan_to_num(values, nan=0.0)
    return np.sign(values) * np.searchsorted(magnitudes(dtype), np.abs(values))
