"""Triton kernels against the references of their operations, under Triton's interpreter.

Run by `test_triton.py` in a process of its own: the interpreter has to be chosen before a kernel is
imported.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from fusec import symbolic
from fusec.ir import OPS, Graph, Node, TensorType
from fusec.ir.ops.base import Array
from fusec.ir.types import Attr
from fusec.kernels.launch import Call, Storage, TritonSource, dense_strides
from fusec.kernels.registry import Kernel, kernels
from fusec.target import target_named

TORCH = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
TOLERANCE = {"f32": 2e-5, "bf16": 1.0 / 128, "f16": 2e-3}
"""Relative to the largest value: what rounding the result once costs, with f32 in between."""

GUARD = 64

# A sigmoid computed in numpy overflows where a GPU's goes to infinity; the result is 0 either way.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")


@dataclass(frozen=True)
class Operand:
    """A random operand: its sizes, and how many more elements a row has in memory."""

    shape: tuple[int, ...]
    dtype: str
    padding: int = 0

    @property
    def strides(self) -> tuple[int, ...]:
        row = self.shape[-1] + self.padding
        outer = dense_strides((*self.shape[:-1], row))
        return tuple(symbolic.evaluate(stride, {}) for stride in outer)


def triton_record(op: str) -> Kernel:
    return next(kernel for kernel in kernels()[op] if kernel.provider == "triton")


def check(
    op: str,
    operands: Sequence[Operand],
    attrs: dict[str, Attr],
    scale: float = 1.0,
    answer: float = 1.0,
) -> None:
    """Run the kernel of `op` and compare every result, times `answer`, and what surrounds it."""
    rng = np.random.default_rng(abs(hash((op, *operands))) % 2**32)
    target = target_named("gfx950")
    graph = Graph("case")
    names = [
        graph.add_input(f"x{i}", TensorType(operand.dtype, operand.shape))
        for i, operand in enumerate(operands)
    ]
    node = graph.add(op, names, attrs)
    record = triton_record(op)
    assert record.supports(graph, node, target) is None
    tensors = [_random(rng, operand, scale) for operand in operands]
    inputs = tuple(
        Storage(i, operand.dtype, operand.shape, operand.strides)
        for i, operand in enumerate(operands)
    )
    results = [_result(graph, node, i, len(operands) + i) for i in range(len(node.outputs))]
    call = Call(graph, node, target, inputs, tuple(storage for storage, _ in results))
    (launch,) = record.launches(call)
    assert isinstance(launch.code, TritonSource)
    function = getattr(importlib.import_module(launch.code.module), launch.code.function)
    memory = {storage.buffer: tensor for storage, tensor in results}
    memory |= {i: tensor for i, (tensor, _) in enumerate(tensors)}
    pointers = [memory[storage.buffer] for storage in launch.operands]
    grid = tuple(symbolic.evaluate(size, {}) for size in launch.grid)
    function[grid](*pointers, *launch.params, **dict(launch.code.constants))
    wanted = OPS[op].reference(
        [values for _, values in tensors], attrs, tuple(graph.type(v) for v in node.outputs)
    )
    for (storage, tensor), want in zip(results, wanted, strict=True):
        flat = tensor.float().numpy()
        assert np.isnan(flat[-GUARD:]).all(), "the kernel wrote behind its result"
        got = flat[:-GUARD].reshape(want.shape)
        want = want * answer
        largest = max(float(np.max(np.abs(want))), 1e-6)
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE[storage.dtype] * largest)


def _random(rng: np.random.Generator, operand: Operand, scale: float) -> tuple[torch.Tensor, Array]:
    row = operand.shape[-1] + operand.padding
    values = rng.standard_normal((*operand.shape[:-1], row)) * scale
    tensor = torch.tensor(values, dtype=torch.float64).to(TORCH[operand.dtype])
    read = tensor[..., : operand.shape[-1]].double().numpy()
    if operand.padding:
        tensor[..., operand.shape[-1] :] = torch.nan  # what a row must not read
    return tensor.reshape(-1), read


def _result(graph: Graph, node: Node, index: int, buffer: int) -> tuple[Storage, torch.Tensor]:
    kind = graph.type(node.outputs[index])
    shape = tuple(symbolic.evaluate(dim, {}) for dim in kind.shape)
    size = int(np.prod(shape)) + GUARD
    memory = torch.full((size,), torch.nan, dtype=TORCH[kind.dtype])
    return Storage(buffer, kind.dtype, shape, dense_strides(shape)), memory


NORM: dict[str, Attr] = {"eps": 1e-6, "weight_offset": 0}
ROWS = [(3, 64), (2, 3, 127), (1, 2880), (5, 1), (2, 8193)]
DTYPES = ["f32", "bf16", "f16"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ROWS)
@pytest.mark.parametrize("offset", [0, 1])
def test_rms_norm(shape: tuple[int, ...], dtype: str, offset: int) -> None:
    attrs: dict[str, Attr] = {**NORM, "weight_offset": offset, "has_weight": True}
    check("rms_norm", [Operand(shape, dtype), Operand(shape[-1:], "f32")], attrs)


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e3])
def test_rms_norm_of_extreme_rows(scale: float) -> None:
    attrs: dict[str, Attr] = {**NORM, "has_weight": True}
    check("rms_norm", [Operand((3, 96), "f32", 5), Operand((96,), "f32")], attrs, scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ROWS)
def test_add_rms_norm(shape: tuple[int, ...], dtype: str) -> None:
    operands = [Operand(shape, dtype), Operand(shape, dtype, 7), Operand(shape[-1:], dtype)]
    check("add_rms_norm", operands, NORM)


@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("shape", [(4, 2, 128), (3, 64), (2, 3, 100)])
def test_gated_rms_norm(shape: tuple[int, ...], before: bool, activation: str) -> None:
    attrs: dict[str, Attr] = {**NORM, "activation": activation, "norm_before_gate": before}
    operands = [Operand(shape, "bf16"), Operand(shape[-1:], "f32"), Operand(shape, "bf16", 12)]
    check("gated_rms_norm", operands, attrs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(1536, 512), (48, 32), (100, 7)])
def test_dual_rms_norm(sizes: tuple[int, int], dtype: str) -> None:
    first, second = sizes
    operands = [
        Operand((2, 5, first), dtype, second + 64),
        Operand((first,), dtype),
        Operand((2, 5, second), dtype, first + 64),
        Operand((second,), dtype),
    ]
    check("dual_rms_norm", operands, {"eps1": 1e-6, "eps2": 1e-5, "weight_offset": 0})


GATES: list[tuple[str, dict[str, Attr]]] = [
    ("silu_mul", {}),
    ("gelu_mul", {"approximate": "none"}),
    ("gelu_mul", {"approximate": "tanh"}),
    ("swiglu_oai", {"alpha": 1.702, "limit": 7.0}),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "attrs"), GATES)
@pytest.mark.parametrize("shape", [(3, 160), (2, 2, 2880), (1, 1)])
def test_gated_activations(
    shape: tuple[int, ...], op: str, attrs: dict[str, Attr], dtype: str
) -> None:
    check(op, [Operand(shape, dtype, shape[-1]), Operand(shape, dtype)], attrs, 3.0)


def test_a_doubled_answer_fails() -> None:
    operands = [Operand((3, 64), "bf16"), Operand((64,), "bf16")]
    with pytest.raises(AssertionError):
        check("rms_norm", operands, {**NORM, "has_weight": True}, answer=2.0)
