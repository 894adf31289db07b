"""Rows that are quantised as they are made, on the CPU: codes and scales bit for bit."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import row_tables
from cpu_library import Module, bits, cpu_library, encode
from cpu_library import decode as widened
from row_problems import Memory, Problem, Run, quantised, solve

from fusec.dtypes import DTYPES
from fusec.formats import (
    QUANT_MAX,
    ScaleLayout,
    Scaling,
    decode,
    encode_e8m0,
    fp8_scaling,
    magnitudes,
    mx_scaling,
    pack_e2m1,
)
from fusec.formats import encode as encode_fp8
from fusec.ir import Graph, TensorType
from fusec.ir.types import Attr
from fusec.kernels.launch import Call, Launch, Param, Storage, dense_strides
from fusec.kernels.registry import Kernel, choose, kernels
from fusec.symbolic import evaluate
from fusec.target import target_named

TARGET = target_named("x86-64-v4")
FP8 = ("f8e4m3fn", "f8e4m3fnuz", "f8e5m2")
library = cpu_library("rms_norm", "silu_mul", "quantize")


def number(param: Param) -> int:
    """A parameter as it travels."""
    return bits(param) if isinstance(param, float) else int(evaluate(param, {}))


def run_on(module: Module) -> Run:
    """Runs launches in the memory of a problem."""

    def run(launch: Launch, memory: Memory) -> None:
        addresses = [
            memory[storage.buffer].data_ptr() + int(evaluate(storage.byte_offset, {}))
            for storage in launch.operands
        ]
        buffers = (ctypes.c_void_p * len(addresses))(*addresses)
        params = (ctypes.c_int64 * len(launch.params))(*map(number, launch.params))
        getattr(module.library, launch.symbol)(buffers, params)

    return run


def problems() -> list[Problem]:
    """Those of the tables that have to do with narrow formats."""
    tables = (row_tables.tables(dtype) for dtype in (row_tables.FN, row_tables.FNUZ))
    found = [
        problem
        for table in tables
        for rows in table.values()
        for problem in rows
        if "quant_dtype" in problem.attrs
    ]
    return list({str(problem): problem for problem in found}.values())


@pytest.mark.parametrize("number", range(8))
def test_problems_of_the_tables(library: Module, number: int) -> None:
    for index, problem in enumerate(problems()[number::8]):
        solve(problem, run_on(library), TARGET, seed=index, provider="cpp")


def test_a_doubled_answer_fails(library: Module) -> None:
    problem = quantised(row_tables.rms_norm((5, 512)), fp8_scaling("f8e4m3fn", "token"))
    with pytest.raises(AssertionError):
        solve(problem, run_on(library), TARGET, seed=0, answer=2.0, provider="cpp")


# --- bit for bit ----------------------------------------------------------------------------


def computed(
    module: Module, op: str, operands: Sequence[tuple[np.ndarray, str]], attrs: Mapping[str, Attr]
) -> list[np.ndarray]:
    """The results of a node as they are stored, from operands as they are stored.

    Operands and results lie before pages that cannot be touched.
    """
    graph = Graph("case")
    names = [
        graph.add_input(f"x{i}", TensorType(dtype, stored.shape))
        for i, (stored, dtype) in enumerate(operands)
    ]
    node = graph.add(op, names, dict(attrs))
    kernel = record(graph, op)
    kinds = [*(graph.type(name) for name in names), *(graph.type(name) for name in node.outputs)]
    storages = [
        Storage(i, kind.dtype, kind.shape, dense_strides(kind.shape))
        for i, kind in enumerate(kinds)
    ]
    buffers = [stored for stored, _ in operands]
    for kind in kinds[len(names) :]:
        shape = tuple(int(evaluate(dim, {})) for dim in kind.shape)
        raw = np.full(int(np.prod(shape)) * DTYPES[kind.dtype].itemsize, 0xFF, np.uint8)
        holds = {"f32": np.float32, "bf16": np.uint16, "f16": np.float16}
        buffers.append(raw.view(holds.get(kind.dtype, np.uint8)).reshape(shape))
    inputs, outputs = tuple(storages[: len(names)]), tuple(storages[len(names) :])
    for launch in kernel.launches(Call(graph, node, TARGET, inputs, outputs)):
        order = [storage.buffer for storage in launch.operands]
        after = module.call(
            launch.symbol, [buffers[i] for i in order], [number(param) for param in launch.params]
        )
        for buffer, array in zip(order, after, strict=True):
            buffers[buffer] = array
    return buffers[len(names) :]


def record(graph: Graph, op: str) -> Kernel:
    """The record of the C++ kernel that computes `op`, the only node of `graph`."""
    (node,) = (node for node in graph.nodes() if node.op == op)
    choice = choose(graph, node, TARGET)
    assert choice.kernel is not None, choice.reason
    return choice.kernel


def assert_quantised(
    scaling: Scaling, wide: np.ndarray, codes: np.ndarray, scales: np.ndarray | None, given: float
) -> None:
    """Codes and scales are those of the reference for the numbers `wide`."""
    with np.errstate(all="ignore"):
        values, scale = scaling.quantise(wide, None if scales is not None else np.array([given]))
        nans = np.isnan(values)
        if scaling.packed:
            wanted = pack_e2m1(values)
        else:
            wanted = encode_fp8(values, scaling.dtype)
    assert (codes[~nans] if not scaling.packed else codes).tobytes() == (
        wanted[~nans] if not scaling.packed else wanted
    ).tobytes()
    assert scaling.packed or np.isnan(decode(codes[nans], scaling.dtype)).all()
    if scales is None:
        return
    rows = scales.T.reshape(scale.shape) if scaling.layout == "column" else scales
    if scaling.scale_dtype == "e8m0":
        known = ~np.isnan(scale)
        assert (rows[known] == encode_e8m0(scale[known])).all()
        assert (rows[~known] == 0xFF).all()
    else:
        np.testing.assert_array_equal(rows, scale.astype(np.float32))


def scalings(dtype: str) -> list[Scaling]:
    """Every way to quantise to one 8-bit float."""
    found = [
        fp8_scaling(dtype, "token"),
        fp8_scaling(dtype, "token", power_of_two=True, layout="column"),
        replace(fp8_scaling(dtype, "token"), upper_bound=0.004),
    ]
    layouts: tuple[ScaleLayout, ...] = ("row", "column")
    for group, layout, power in itertools.product((64, 128), layouts, (False, True)):
        found.append(fp8_scaling(dtype, "group", group=group, layout=layout, power_of_two=power))
    return [*found, *(mx_scaling(dtype, way) for way in row_tables.ROUNDINGS)]


PACKED = [mx_scaling("f4e2m1x2", way) for way in row_tables.ROUNDINGS]
ALL = [*itertools.chain.from_iterable(map(scalings, FP8)), *PACKED]


def hard_rows(rng: np.random.Generator, n: int, dtype: str) -> np.ndarray:
    """Ties, zeros, infinities, NaN, subnormals, and one large number among small ones."""
    rows = [
        rng.standard_normal(n),
        rng.standard_normal(n) * 1e4,
        np.zeros(n),
        rng.standard_normal(n) * 1e-6,
        rng.standard_normal(n) * 1e-42,
        rng.integers(-64, 65, n) / 16.0,
        rng.integers(-896, 897, n) / 2.0,
        np.where(np.arange(n) == n // 2, 3e4, rng.standard_normal(n)),
        np.where(np.arange(n) == n // 3, np.inf, rng.standard_normal(n)),
        np.where(np.arange(n) == n - 1, np.nan, rng.standard_normal(n)),
        -np.abs(rng.standard_normal(n)) * 1e-3,
        rng.standard_normal(n) * 10.0 ** rng.integers(-8, 5, n),
    ]
    with np.errstate(over="ignore"):
        return encode(np.stack(rows).astype(np.float32), dtype)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("n", [32, 130, 384, 2100])
def test_quantize_bit_for_bit(library: Module, dtype: str, n: int) -> None:
    rng = np.random.default_rng(n)
    for scaling in ALL:
        x = hard_rows(rng, n, dtype)
        attrs = {**scaling.attrs(), "has_scale": False}
        codes, scales = computed(library, "quantize", [(x, dtype)], attrs)
        assert_quantised(scaling, widened(x, dtype), codes, scales, 0.0)


@pytest.mark.parametrize("dtype", [*FP8, "f4e2m1x2"])
@pytest.mark.parametrize(
    "scale", [1.0, 1.5, 0.0123, 3e-39, 1e-30, 2.0**-127, 3e38, 0.0, np.inf, np.nan]
)
def test_codes_by_a_given_scale(library: Module, dtype: str, scale: float) -> None:
    """Every code, every tie and its neighbours."""
    values = magnitudes(dtype)
    ties = (values[1:] + values[:-1]) / 2
    sizes = np.concatenate((values, ties, [2 * values[-1], np.inf, np.nan])).astype(np.float32)
    with np.errstate(all="ignore"):
        exact = (sizes * np.float32(scale)).astype(np.float32)
        exact = np.where(np.isnan(exact), 1.0, exact).astype(np.float32)
    near = np.stack(
        (exact, np.nextafter(exact, np.float32(0)), np.nextafter(exact, np.float32(np.inf)))
    )
    x = np.stack((near, -near)).reshape(1, -1)
    x = np.concatenate((x, np.zeros((1, x.shape[1] % 2), np.float32)), -1).astype(np.float32)
    scaling = replace(fp8_scaling("f8e4m3fn", "tensor"), dtype=dtype, maximum=float(values[-1]))
    attrs = {**scaling.attrs(), "has_scale": True}
    given = np.array([scale], np.float32)
    (codes,) = computed(library, "quantize", [(x, "f32"), (given, "f32")], attrs)
    assert_quantised(scaling, x.astype(np.float64), codes, None, float(given[0]))


def operands_of(
    rng: np.random.Generator, op: str, rows: int, n: int
) -> tuple[list[tuple[np.ndarray, str]], dict[str, Attr]]:
    """f32 operands and attributes of an operation whose result is quantised."""
    x, y, weight = (
        (rng.standard_normal(shape).astype(np.float32), "f32")
        for shape in ((rows, n), (rows, n), (n,))
    )
    norm: dict[str, Attr] = {"eps": 1e-6, "weight_offset": 0}
    if op == "rms_norm":
        return [x, weight], {**norm, "has_weight": True}
    if op == "add_rms_norm":
        return [x, y, weight], norm
    if op == "gated_rms_norm":
        return [x, weight, y], {**norm, "activation": "sigmoid", "norm_before_gate": True}
    if op == "gelu_mul":
        return [x, y], {"approximate": "tanh"}
    return [x, y], {"alpha": 1.702, "limit": 7.0} if op == "swiglu_oai" else {}


@pytest.mark.parametrize(
    "op", ["rms_norm", "add_rms_norm", "gated_rms_norm", "silu_mul", "gelu_mul", "swiglu_oai"]
)
@pytest.mark.parametrize("n", [64, 254, 1500])
def test_fused_rows_are_the_plain_rows_quantised(library: Module, op: str, n: int) -> None:
    """In f32 the plain rows are what is quantised, so that codes follow from them exactly."""
    rng = np.random.default_rng(n)
    for scaling in (*scalings("f8e4m3fn")[::3], *PACKED):
        operands, attrs = operands_of(rng, op, 5, n)
        quant = {**attrs, **scaling.attrs(), "has_scale": False, "with_plain": True}
        codes, scales, plain, *rest = computed(library, f"{op}_quant", operands, quant)
        assert_quantised(scaling, plain.astype(np.float64), codes, scales, 0.0)
        unfused = computed(library, op, operands, attrs)
        assert [array.tobytes() for array in unfused] == [
            array.tobytes() for array in (plain, *rest)
        ]


def test_rows_side_by_side_are_quantised_as_one(library: Module) -> None:
    """Heads of 24, six of which are a row, by token and by groups that no head holds whole."""
    rng = np.random.default_rng(3)
    for scaling in (fp8_scaling("f8e4m3fn", "token"), fp8_scaling("f8e4m3fn", "group", group=64)):
        operands, attrs = operands_of(rng, "gated_rms_norm", 42, 24)
        quant = {**attrs, **scaling.attrs(), "has_scale": False, "with_plain": True}
        codes, scales, plain = computed(
            library, "gated_rms_norm_quant", operands, {**quant, "shape": (7, 144)}
        )
        assert plain.shape == (7, 144)
        assert_quantised(scaling, plain.astype(np.float64), codes, scales, 0.0)


def test_rows_do_not_depend_on_threads(library: Module) -> None:
    rng = np.random.default_rng(7)
    operands, attrs = operands_of(rng, "add_rms_norm", 301, 500)
    scaling = fp8_scaling("f8e4m3fn", "group", group=128, layout="column")
    quant = {**attrs, **scaling.attrs(), "has_scale": False, "with_plain": True}
    both = []
    for threads in (1, 2):
        library.threads(threads)
        both.append(computed(library, "add_rms_norm_quant", operands, quant))
    for one, other in zip(*both, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("rows", [0, 3])
def test_rows_of_no_elements(library: Module, rows: int) -> None:
    x = np.zeros((rows, 0), np.float32)
    scaling = fp8_scaling("f8e4m3fn", "token")
    attrs = {**scaling.attrs(), "has_scale": False}
    codes, scales = computed(library, "quantize", [(x, "f32")], attrs)
    assert codes.shape == (rows, 0)
    assert (scales == np.float32(scaling.floor)).all()


@pytest.mark.parametrize("dtype", [*FP8, "f4e2m1x2"])
def test_every_code_is_read(library: Module, dtype: str) -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128)
    scaling = mx_scaling(dtype)
    width = 256 if scaling.packed else 128
    scale = np.array([[0, 1, 127, 254], [255, 120, 130, 3]], np.uint8)
    scale = np.repeat(scale, width // 128, -1)
    attrs = {**scaling.attrs(), "dtype": "f32"}
    (out,) = computed(library, "dequantize", [(codes, dtype), (scale, "e8m0")], attrs)
    values = decode(codes, dtype) if not scaling.packed else None
    if values is None:
        low, high = codes & 15, codes >> 4
        held = magnitudes(dtype)
        both = np.stack((low, high), -1).reshape(2, -1)
        values = np.where(both & 8, -held[both & 7], held[both & 7])
    with np.errstate(all="ignore"):
        wanted = (values * scaling.expanded(decode(scale, "e8m0"), values.shape)).astype(np.float32)
    np.testing.assert_array_equal(out, wanted)


def test_what_no_kernel_quantises_is_refused() -> None:
    scaling = fp8_scaling("f8e4m3fn", "tensor")
    odd = replace(fp8_scaling("f8e4m3fn", "token"), maximum=QUANT_MAX["f8e4m3fn"] - 1)
    for each, reason in ((scaling, "scale of a whole tensor"), (odd, "447 is no number")):
        graph = Graph("case")
        x = graph.add_input("x", TensorType("f32", (4, 64)))
        node = graph.add("quantize", [x], {**each.attrs(), "has_scale": False})
        (kernel,) = (k for k in kernels()["quantize"] if k.provider == "cpp")
        assert reason in str(kernel.supports(graph, node, TARGET))
