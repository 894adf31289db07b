"""HIP kernels over rows: their source, run on the host, against the references of operations."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from elftools.elf.elffile import ELFFile
from hip_shim import run_launch

from fusec import symbolic
from fusec.emulator.host import library
from fusec.formats import FP8, Scaling, decode, fp8_scaling
from fusec.ir import OPS, Graph, TensorType
from fusec.ir.types import Attr
from fusec.kernels.dual_rms_norm import hip as dual_rms_norm
from fusec.kernels.launch import Call, HipSource, Launch, Storage, dense_strides
from fusec.kernels.registry import Kernel
from fusec.kernels.rms_norm import hip as rms_norm
from fusec.kernels.silu_mul import hip as silu_mul
from fusec.link.code_object import read_code_object
from fusec.link.hip_build import build_hip
from fusec.symbolic import Dim, symbol
from fusec.target import target_named

RECORDS = {kernel.op: kernel for each in (rms_norm, dual_rms_norm, silu_mul) for kernel in each.HIP}
TORCH = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
TOLERANCE = {"f32": 2e-5, "bf16": 1.0 / 128, "f16": 2e-3}
"""Relative to the largest value: what rounding the result once costs, with f32 in between."""

GUARD = 64
NORM: dict[str, Attr] = {"eps": 1e-6, "weight_offset": 0}


@dataclass(frozen=True)
class Operand:
    """A random operand: its sizes, and how many more elements a row has in memory."""

    shape: tuple[int, ...]
    dtype: str = "bf16"
    padding: int = 0

    def storage(self, buffer: int) -> Storage:
        outer = dense_strides((*self.shape[:-1], self.shape[-1] + self.padding))
        return Storage(buffer, self.dtype, self.shape, outer)


def check(
    op: str,
    operands: Sequence[Operand],
    attrs: dict[str, Attr],
    *,
    target: str = "gfx950",
    scale: float = 1.0,
    answer: float = 1.0,
    first: float | None = None,
) -> None:
    """Run the kernel of `op` on the host and compare every result, and what lies behind it.

    `first` is the first element of the first operand, if it is none of the random ones.
    """
    seed = int.from_bytes(os.urandom(4), "little")
    random = np.random.default_rng(seed)
    graph = Graph("case")
    names = [
        graph.add_input(f"x{i}", TensorType(operand.dtype, operand.shape))
        for i, operand in enumerate(operands)
    ]
    node = graph.add(op, names, attrs)
    record, machine = RECORDS[op], target_named(target)
    assert record.supports(graph, node, machine) is None
    memory: dict[int, torch.Tensor] = {}
    read: list[np.ndarray] = []
    for i, operand in enumerate(operands):
        row = operand.shape[-1] + operand.padding
        values = random.standard_normal((*operand.shape[:-1], row)) * scale
        if attrs.get("has_scale") and i == len(operands) - 1:
            values = np.array([0.0371])
        if first is not None and i == 0:
            values.flat[0] = first
        memory[i] = torch.tensor(values).to(TORCH[operand.dtype])
        read.append(memory[i][..., : operand.shape[-1]].double().numpy())
        memory[i][..., operand.shape[-1] :] = torch.nan  # what a row must not read
    outputs = []
    for i, value in enumerate(node.outputs, start=len(operands)):
        kind = graph.type(value)
        shape = tuple(symbolic.evaluate(dim, {}) for dim in kind.shape)
        count = int(np.prod(shape)) + GUARD
        narrow = kind.dtype in FP8
        memory[i] = (
            torch.full((count,), 0xAA, dtype=torch.uint8)
            if narrow
            else torch.full((count,), torch.nan, dtype=TORCH[kind.dtype])
        )
        outputs.append(Storage(i, kind.dtype, shape, dense_strides(shape)))
    inputs = tuple(operand.storage(i) for i, operand in enumerate(operands))
    (launch,) = record.launches(Call(graph, node, machine, inputs, tuple(outputs)))
    run_launch(launch, dict(memory), target == "gfx942")
    with np.errstate(all="ignore"):
        wanted = OPS[op].reference(read, attrs, tuple(graph.type(v) for v in node.outputs))
    scales = (1, 3) if op == "dual_rms_norm_quant" else (1,) * op.endswith("quant")
    for index, (storage, want) in enumerate(zip(outputs, wanted, strict=True)):
        is_scale = index in scales and storage.dtype == "f32" and not attrs.get("has_scale")
        _compare(storage, memory[storage.buffer], want * answer, is_scale, seed)


def _compare(
    storage: Storage, memory: torch.Tensor, want: np.ndarray, is_scale: bool, seed: int
) -> None:
    behind, shape = memory[-GUARD:], want.shape
    if storage.dtype in FP8:
        assert (behind == 0xAA).all(), "the kernel wrote behind its result"
        got = decode(memory[:-GUARD].numpy(), storage.dtype).reshape(shape)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        assert np.mean((got == want) | np.isnan(want)) > 0.99, f"codes differ, seed {seed}"
        np.testing.assert_allclose(got, want, rtol=0.126, atol=2**-8, equal_nan=True)
        return
    assert behind.isnan().all(), "the kernel wrote behind its result"
    values = memory[:-GUARD].double().numpy().reshape(shape)
    if is_scale:
        np.testing.assert_allclose(values, want, rtol=1e-5, err_msg=f"seed {seed}")
        return
    largest = max(float(np.nanmax(np.abs(want), initial=0)), 1e-6)
    tolerance = TOLERANCE[storage.dtype] * largest
    np.testing.assert_allclose(values, want, rtol=0, atol=tolerance, err_msg=f"seed {seed}")


SHAPES = [(3, 64), (2, 3, 127), (1, 2880), (5, 1), (2, 8200), (2, 16384)]
SCALINGS = [
    fp8_scaling("f8e4m3fn", "token"),
    fp8_scaling("f8e4m3fn", "group", group=128),
    fp8_scaling("f8e4m3fn", "group", group=64, power_of_two=True, layout="column"),
    fp8_scaling("f8e4m3fn", "group", group=32),
    fp8_scaling("f8e4m3fn", "tensor"),
    Scaling("f8e4m3fn", "group", 128, maximum=448.0, upper_bound=0.004),
]


def quantising(scaling: Scaling, **more: Attr) -> dict[str, Attr]:
    return {**scaling.attrs(), "has_scale": scaling.granularity == "tensor", **more}


def short(case: object) -> str:
    """The name of a case."""
    if isinstance(case, Scaling):
        bounded = "-bounded" if case.upper_bound is not None else ""
        return f"{case.granularity}{case.group or ''}-{case.rounding}{bounded}"
    return str(case)


def static(scaling: Scaling) -> list[Operand]:
    return [Operand((1,), "f32")] if scaling.granularity == "tensor" else []


@pytest.mark.parametrize(
    ("op", "shape", "dtype"),
    [
        *(("add_rms_norm", shape, "bf16") for shape in SHAPES),
        ("add_rms_norm", (3, 127), "f32"),
        ("add_rms_norm", (3, 256), "f16"),
        ("rms_norm", (2, 3, 127), "bf16"),
        ("rms_norm", (2, 8200), "f32"),
    ],
)
def test_norms(op: str, shape: tuple[int, ...], dtype: str) -> None:
    operands = [Operand(shape, dtype), Operand(shape[-1:], "f32")]
    if op == "add_rms_norm":
        operands.insert(1, Operand(shape, dtype, 7))
    check(op, operands, {**NORM, "weight_offset": 1, "has_weight": True})


@pytest.mark.parametrize(
    ("op", "plain", "scaling"),
    [
        *(("rms_norm_quant", False, scaling) for scaling in SCALINGS),
        *(("add_rms_norm_quant", True, SCALINGS[index]) for index in (0, 1, 4)),
    ],
    ids=short,
)
def test_norms_into_fp8(op: str, plain: bool, scaling: Scaling) -> None:
    operands = [Operand((5, 1536), "bf16", 64), Operand((1536,), "bf16"), *static(scaling)]
    if op == "add_rms_norm_quant":
        operands.insert(1, Operand((5, 1536)))
    check(op, operands, quantising(scaling, **NORM, has_weight=True, with_plain=plain))


@pytest.mark.parametrize(
    ("length", "dtype"),
    [(256, "f16"), (7168, "bf16"), (96, "f32"), (96, "bf16"), (200, "f32"), (200, "f16")],
)
def test_lengths_and_dtypes_into_fp8(length: int, dtype: str) -> None:
    scaling = fp8_scaling("f8e4m3fn", "group", group=32)
    operands = [Operand((3, length), dtype), Operand((length,), "f32")]
    check("rms_norm_quant", operands, quantising(scaling, **NORM, has_weight=True))


@pytest.mark.parametrize("sizes", [(1536, 512), (48, 32), (100, 7)])
def test_dual_norm(sizes: tuple[int, int]) -> None:
    check("dual_rms_norm", dual(*sizes), {"eps1": 1e-6, "eps2": 1e-5, "weight_offset": 0})


def dual(first: int, second: int) -> list[Operand]:
    return [
        Operand((2, 5, first), "bf16", second + 64),
        Operand((first,)),
        Operand((2, 5, second), "bf16", first + 64),
        Operand((second,)),
    ]


@pytest.mark.parametrize("quantises", ["first", "both"])
@pytest.mark.parametrize("scaling", SCALINGS[:3], ids=short)
def test_dual_norm_into_fp8(scaling: Scaling, quantises: str) -> None:
    attrs: dict[str, Attr] = {"eps1": 1e-6, "eps2": 1e-5, "weight_offset": 0}
    more: dict[str, Attr] = {**attrs, "quantises": quantises}
    check("dual_rms_norm_quant", dual(1536, 512), {**scaling.attrs(), **more})


GATES: list[tuple[str, dict[str, Attr]]] = [
    ("silu_mul", {}),
    ("gelu_mul", {"approximate": "none"}),
    ("gelu_mul", {"approximate": "tanh"}),
    ("swiglu_oai", {"alpha": 1.702, "limit": 7.0}),
]


@pytest.mark.parametrize(("shape", "dtype"), [((3, 160), "f32"), ((2, 2, 2880), "bf16")])
@pytest.mark.parametrize(("op", "attrs"), GATES)
def test_gates(shape: tuple[int, ...], op: str, attrs: dict[str, Attr], dtype: str) -> None:
    operands = [Operand(shape, dtype, shape[-1]), Operand(shape, dtype)]
    check(op, operands, attrs, scale=3.0, first=np.nan)


@pytest.mark.parametrize(
    ("scaling", "length", "tokens"),
    [
        *((scaling, 2944, 1) for scaling in SCALINGS),
        *((SCALINGS[index], 128, 16) for index in (0, 2)),
    ],
    ids=short,
)
def test_silu_mul_into_fp8(scaling: Scaling, length: int, tokens: int) -> None:
    operands = [Operand((tokens, length), "bf16", length)] * 2
    check("silu_mul_quant", [*operands, *static(scaling)], quantising(scaling))


@pytest.mark.parametrize("target", ["gfx950", "gfx942"])
def test_the_format_is_that_of_the_target(target: str) -> None:
    dtype = target_named(target).fp8
    assert dtype is not None
    scaling = fp8_scaling(dtype, "group", group=128)
    operands = [Operand((3, 256)), Operand((3, 256))]
    check("silu_mul_quant", operands, quantising(scaling), target=target)


@pytest.mark.parametrize("scale", [0.0, 1e-40, 1e-4, 1e4])
def test_extreme_rows(scale: float) -> None:
    operands = [Operand((3, 256), "f32"), Operand((256,), "f32")]
    attrs = quantising(SCALINGS[1], **NORM, has_weight=True, with_plain=True)
    check("rms_norm_quant", operands, attrs, scale=scale)


@pytest.mark.parametrize("scaling", SCALINGS[:2], ids=short)
def test_the_least_scale_is_the_one_that_is_asked_for(scaling: Scaling) -> None:
    """A source that quantises its rows itself may have a lower one than fusec's own kernels."""
    attrs = quantising(dataclasses.replace(scaling, least=1e-12))
    check("silu_mul_quant", [Operand((3, 256))] * 2, attrs, scale=1e-3)


def test_kernels_share_no_memory_on_the_host() -> None:
    """Only the function is seen outside: arrays of its headers are as long as it has lanes."""
    operand = Storage(0, "bf16", (3, 256), (256, 1))
    graph = Graph("case")
    names = [graph.add_input(name, TensorType("bf16", (3, 256))) for name in ("gate", "up")]
    node = graph.add("silu_mul", names, {})
    call = Call(graph, node, target_named("gfx950"), (operand, operand), (operand,))
    (launch,) = RECORDS["silu_mul"].launches(call)
    assert isinstance(launch.code, HipSource)
    with Path(library(launch.code, fnuz=False)._name).open("rb") as file:
        table = ELFFile(file).get_section_by_name(".dynsym")
        seen = [symbol.name for symbol in table.iter_symbols() if symbol["st_shndx"] != "SHN_UNDEF"]
    assert seen == [launch.symbol]


def test_a_doubled_answer_fails() -> None:
    operands = [Operand((3, 128)), Operand((128,))]
    for op, more in (("rms_norm", {}), ("rms_norm_quant", quantising(SCALINGS[1]))):
        with pytest.raises(AssertionError):
            check(op, operands, {**NORM, **more, "has_weight": True}, answer=2.0)


# --- code objects ---------------------------------------------------------------------------

ROWS = symbol("rows")
CASES: list[tuple[str, list[tuple[Dim, ...]], dict[str, Attr]]] = [
    ("rms_norm", [(ROWS, 4096), (4096,)], {**NORM, "has_weight": True}),
    ("add_rms_norm", [(ROWS, 7168), (ROWS, 7168), (7168,)], NORM),
    ("add_rms_norm_quant", [(ROWS, 2880), (ROWS, 2880), (2880,)], {**NORM, "with_plain": True}),
    ("rms_norm_quant", [(ROWS, 8192), (8192,)], {**NORM, "has_weight": True}),
    ("silu_mul", [(ROWS, 14336), (ROWS, 14336)], {}),
    ("silu_mul_quant", [(ROWS, 18432), (ROWS, 18432)], {}),
]


def built(record: Kernel, shapes: list[tuple[Dim, ...]], attrs: dict[str, Attr], name: str) -> Any:
    graph, target = Graph("case", {"rows": (1, None)}), target_named(name)
    if record.op.endswith("quant"):
        group = 64 if shapes[0][-1] == 2880 else 128
        attrs = {**attrs, **fp8_scaling(str(target.fp8), "group", group=group).attrs()}
    names = [graph.add_input(f"x{i}", TensorType("bf16", shape)) for i, shape in enumerate(shapes)]
    node = graph.add(record.op, names, attrs)
    kinds = [graph.type(value) for value in (*names, *node.outputs)]
    places = tuple(
        Storage(i, kind.dtype, kind.shape, dense_strides(kind.shape))
        for i, kind in enumerate(kinds)
    )
    call = Call(graph, node, target, places[: len(names)], places[len(names) :])
    launch: Launch
    (launch,) = record.launches(call)
    assert isinstance(launch.code, HipSource)
    return launch, build_hip(launch.code, target)


@pytest.mark.parametrize("name", ["gfx950", "gfx942"])
@pytest.mark.parametrize(("op", "shapes", "attrs"), CASES)
def test_code_objects(
    op: str, shapes: list[tuple[Dim, ...]], attrs: dict[str, Attr], name: str
) -> None:
    launch, code = built(RECORDS[op], shapes, attrs, name)
    kernel = read_code_object(code.code).kernels[launch.symbol]
    assert len(kernel.arguments) == len(launch.operands) + len(launch.params)
    assert code.machine.widest_load == 16
    assert not code.machine.forbidden
    assert kernel.resources["vgpr"] <= 64
    for spilled in ("vgpr_spills", "sgpr_spills", "scratch_bytes"):
        assert not kernel.resources[spilled]
