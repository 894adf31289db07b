"""The records of the CPU kernels: a node, operands scattered in memory, and the op's reference.

Every case goes the way of a compiled model: the record says what it needs, operands are laid out
accordingly, its launch is evaluated and run, and the result is compared with the meaning of the
operation.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from cpu_library import ULP, Module, bits, decode, encode, module

from fusec.dtypes import DTYPES
from fusec.ir import Graph, TensorType
from fusec.ir.ops import OPS
from fusec.ir.types import Attr
from fusec.ir.weights import from_array
from fusec.kernels.launch import Call, Storage
from fusec.kernels.registry import Kernel, choose
from fusec.symbolic import Expr, evaluate, symbol
from fusec.target import target_named

__all__ = ["module"]

TARGET = target_named("x86-64-v3")


@dataclass(frozen=True, slots=True)
class Operand:
    """One operand: its shape, its dtype ("" is the dtype of the case) and how it is drawn."""

    shape: tuple[int, ...]
    dtype: str = ""
    weight: bool = False
    low: int = 0
    high: int = 0  # integers in [low, high) when above low


@dataclass(frozen=True, slots=True)
class Case:
    op: str
    operands: tuple[Operand, ...]
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    kernel: str = ""
    dtypes: tuple[str, ...] = ("f32", "bf16", "f16")
    tolerance: float = 3.0

    @property
    def name(self) -> str:
        flags = [key for key, value in self.attrs.items() if value is True]
        texts = [value for value in self.attrs.values() if isinstance(value, str)]
        shape = "x".join(map(str, self.operands[0].shape))
        return "-".join([self.kernel or self.op, shape, *flags, *texts])


def x(*shape: int) -> Operand:
    return Operand(shape)


def weight(*shape: int, dtype: str = "") -> Operand:
    return Operand(shape, dtype, weight=True)


def index(high: int, *shape: int, dtype: str = "i64", low: int = 0) -> Operand:
    return Operand(shape, dtype, low=low, high=high)


def attention(**attrs: Attr) -> dict[str, Attr]:
    flags: dict[str, Attr] = {"has_mask": False, "has_sinks": False, "has_key_padding": False}
    return {"scale": 0.3, "causal": False, "window": None, "softcap": None, **flags, **attrs}


def moe(**attrs: Attr) -> dict[str, Attr]:
    defaults: dict[str, Attr] = {"activation": "silu", "alpha": 1.702, "limit": 7.0}
    defaults |= {"gate_up_layout": "split", "transposed": False, "has_bias": False, "gated": True}
    return {**defaults, **attrs}


def router(scores: str, **attrs: Attr) -> dict[str, Attr]:
    defaults: dict[str, Attr] = {"k": 3, "groups": 1, "groups_kept": 1, "group_best": 1}
    defaults |= {"fill": 0.0, "fill_weighs": False, "renormalise": False, "eps": 0.0}
    defaults |= {"least": -math.inf, "scale": 1.0, "has_bias": False, "dtype": "f32"}
    return {**defaults, "scores": scores, **attrs}


NORM: dict[str, Attr] = {"eps": 1e-5, "weight_offset": 0, "has_weight": True}
GATED: dict[str, Attr] = {**NORM, "activation": "silu", "norm_before_gate": True}
CONV1D: dict[str, Attr] = {"stride": (2,), "padding": (1,), "dilation": (1,), "groups": 1}
CONV2D: dict[str, Attr] = {"stride": (1, 2), "padding": (1, 0), "dilation": (2, 1), "groups": 3}
POINTWISE: dict[str, Attr] = {**CONV2D, "stride": (1, 1), "padding": (0, 0), "groups": 1}
ANY = ("f32", "bf16", "f16", "f64")
EXACT = ("f32", "i64", "i32", "bf16")

DOUBLE = frozenset(
    "rms_norm add_rms_norm dual_rms_norm gated_rms_norm layer_norm l2_norm silu_mul gelu_mul "
    "swiglu_oai rope attention conv".split()
)
"""Operations that are also computed in f64."""

CASES = (
    Case("rms_norm", (x(3, 2, 5, 33), weight(33)), NORM),
    Case("rms_norm", (x(2, 2, 3, 1, 2, 17),), {**NORM, "has_weight": False}),
    Case("rms_norm", (x(7, 64), weight(64, dtype="f32")), {**NORM, "weight_offset": 1}),
    Case("add_rms_norm", (x(3, 5, 40), x(3, 5, 40), weight(40)), NORM),
    Case(
        "dual_rms_norm",
        (x(3, 4, 40), weight(40), x(3, 4, 9), weight(9)),
        {"eps1": 1e-5, "eps2": 1e-3, "weight_offset": 0},
    ),
    Case("gated_rms_norm", (x(3, 5, 40), weight(40), x(3, 5, 40)), GATED),
    Case(
        "gated_rms_norm",
        (x(3, 5, 40), weight(40, dtype="f32"), x(3, 5, 40)),
        {**GATED, "activation": "sigmoid", "norm_before_gate": False},
    ),
    Case(
        "layer_norm",
        (x(4, 3, 50), weight(50), weight(50, dtype="f32")),
        {"eps": 1e-5, "has_weight": True, "has_bias": True},
    ),
    Case("layer_norm", (x(4, 5), weight(5)), {"eps": 1e-5, "has_weight": False, "has_bias": True}),
    Case("l2_norm", (x(4, 3, 50),), {"eps": 1e-6, "mode": "add"}),
    Case("l2_norm", (x(4, 3, 50),), {"eps": 1e-6, "mode": "max"}),
    Case("linear", (x(2, 3, 40), weight(50, 40), weight(50))),
    Case("linear", (x(40), weight(50, 40))),
    Case("linear", (x(3, 40), weight(50, 40), weight(50)), {"dtype": "f32"}),
    Case("linear", (x(3, 40), x(50, 40)), {"dtype": "f32"}, kernel="linear_unpacked.cpp"),
    Case("linear", (x(5, 3, 40), x(50, 40), x(50)), kernel="linear_unpacked.cpp"),
    Case("linear", (x(5, 8), weight(9, 8)), kernel="linear_unpacked.cpp", dtypes=("f64",)),
    *(
        Case(
            "linear_epilogue",
            (x(2, 3, 40), weight(50, 40), *operands),
            {"activation": activation, "has_bias": bias, "has_residual": residual},
        )
        for activation, bias, residual, operands in (
            ("gelu", True, False, (weight(50),)),
            ("silu", False, True, (x(2, 3, 50),)),
            ("none", True, True, (weight(50), x(2, 3, 50))),
        )
    ),
    *(
        Case(
            "linear_glu",
            (x(3, 2, 40), weight(100, 40), *([weight(100)] if bias else [])),
            {
                "activation": activation,
                "alpha": 1.702,
                "limit": 7.0,
                "gate_up_layout": layout,
                "has_bias": bias,
            },
        )
        for activation, layout, bias in (
            ("silu", "split", False),
            ("gelu_tanh", "split", True),
            ("swiglu_oai", "interleaved", True),
        )
    ),
    Case("matmul", (x(3, 1, 5, 20), x(2, 20, 40))),
    Case("matmul", (x(4, 7), x(7, 3)), dtypes=("f64", "i64", "i32")),
    Case(
        "grouped_mm",
        (x(9, 20), weight(3, 20, 40), Operand((3,), "i32", high=9)),
    ),
    Case(
        "moe",
        (x(6, 40), Operand((6, 2), "f32"), index(4, 6, 2), weight(4, 36, 40), weight(4, 40, 18)),
        moe(),
    ),
    Case(
        "moe",
        (
            x(6, 40),
            x(6, 2),
            index(5, 6, 2, dtype="i32"),
            weight(4, 40, 36),
            weight(4, 18, 40),
            weight(4, 36),
            weight(4, 40),
        ),
        moe(activation="swiglu_oai", gate_up_layout="interleaved", transposed=True, has_bias=True),
        tolerance=8,
    ),
    Case(
        "moe",
        (x(3, 20), x(3, 1), index(2, 3, 1), weight(2, 36, 20), weight(2, 20, 18)),
        moe(activation="swiglu_limit", limit=0.5),
        tolerance=8,
    ),
    Case(
        "moe",
        (x(3, 20), x(3, 1), index(2, 3, 1), weight(2, 18, 20), weight(2, 20, 18)),
        moe(gated=False, activation="relu2"),
        tolerance=8,
    ),
    Case("router", (x(7, 33),), router("softmax", renormalise=True), tolerance=8),
    Case("router", (x(5, 9),), router("softmax_topk", k=9, scale=2.5), tolerance=8),
    Case("router", (x(5, 9),), router("softmax", dtype="bf16"), tolerance=8),
    Case("router", (x(5, 9),), router("sigmoid", dtype="f16"), tolerance=8),
    Case("router", (x(5, 16), Operand((16,), "f32")), router("sigmoid", has_bias=True, k=1)),
    Case(
        "router",
        (x(6, 20), x(20)),
        router(
            "sigmoid",
            has_bias=True,
            groups=5,
            groups_kept=2,
            group_best=2,
            fill=-float("inf"),
            renormalise=True,
            eps=1e-20,
        ),
        tolerance=8,
    ),
    Case(
        "router",
        (x(6, 20),),
        router("softmax", groups=5, groups_kept=1, fill_weighs=True, k=7, scale=16.0),
        tolerance=8,
    ),
    Case(
        "router",
        (x(5, 9), x(9)),
        router("sigmoid_topk", has_bias=True, renormalise=True, least=2.5),
        tolerance=8,
    ),
    Case("router", (x(5, 9), x(9)), router("given", has_bias=True)),
    Case("silu_mul", (x(3, 5, 33), x(3, 5, 33))),
    Case("gelu_mul", (x(3, 33), x(3, 33)), {"approximate": "tanh"}),
    Case("gelu_mul", (x(3, 33), x(3, 33)), {"approximate": "none"}),
    Case("swiglu_oai", (x(2, 3, 33), x(2, 3, 33)), {"alpha": 1.702, "limit": 1.0}, tolerance=6),
    Case("rope", (x(2, 3, 5, 16), x(5, 16), x(5, 16)), {"style": "half", "rotary_dim": 16}),
    Case(
        "rope",
        (x(2, 3, 5, 16), Operand((2, 1, 5, 4), "f32"), Operand((2, 1, 5, 4), "f32")),
        {"style": "interleaved", "rotary_dim": 8, "deinterleave": True},
    ),
    Case(
        "rope",
        (x(2, 3, 5, 16), x(1, 5, 8), x(1, 5, 8)),
        {"style": "interleaved", "rotary_dim": 8, "deinterleave": False},
    ),
    Case("attention", (x(2, 4, 7, 16), x(2, 2, 9, 16), x(2, 2, 9, 24)), attention(causal=True)),
    Case(
        "attention",
        (x(2, 4, 7, 16), x(2, 2, 7, 16), x(2, 2, 7, 16), Operand((1, 7, 7), "bool", high=2)),
        attention(has_mask=True, softcap=2.0),
    ),
    Case(
        "attention",
        (x(2, 4, 9, 16), x(2, 2, 11, 16), x(2, 2, 11, 16)),
        attention(causal=True, chunk=4),
    ),
    Case(
        "attention",
        (
            x(2, 4, 7, 16),
            x(2, 2, 7, 16),
            x(2, 2, 7, 16),
            x(2, 1, 1, 7),
            weight(4),
            Operand((2, 7), "bool", high=2),
        ),
        attention(has_mask=True, has_sinks=True, has_key_padding=True, window=3),
    ),
    Case("softmax", (x(3, 4, 50),), {"axis": -1}, dtypes=ANY),
    Case("softmax", (x(3, 40, 5),), {"axis": 1}, dtypes=ANY),
    Case("log_softmax", (x(3, 40, 5),), {"axis": 1}, dtypes=ANY),
    Case("logsumexp", (x(3, 40, 5),), {"axes": (1,), "keepdims": False}, dtypes=ANY),
    Case("logsumexp", (x(3, 40, 5),), {"axes": (-1,), "keepdims": True}, dtypes=ANY),
    Case(
        "causal_conv1d",
        (x(2, 9, 13), weight(9, 4), weight(9)),
        {"activation": "silu", "has_bias": True},
    ),
    Case("causal_conv1d", (x(2, 9, 13), weight(9, 3)), {"activation": "none", "has_bias": False}),
    Case(
        "gated_delta_rule",
        (x(2, 5, 2, 8), x(2, 5, 2, 8), x(2, 5, 4, 9), Operand((2, 5, 4), "f32"), x(2, 5, 4)),
        {"scale": 0.3, "qk_l2_norm": True, "eps": 1e-6},
        tolerance=40,
    ),
    Case(
        "gated_delta_rule",
        (x(2, 3, 1, 8), x(2, 3, 1, 8), x(2, 3, 2, 9), x(2, 3, 2, 8), x(2, 3, 2)),
        {"scale": 0.3, "qk_l2_norm": True, "eps": 1e-6},
        tolerance=40,
    ),
    *(
        Case(
            "selective_scan",
            (
                x(2, steps, channels),
                Operand((2, steps, heads), "f32", low=0, high=3),
                Operand((heads, decays), "f32", low=-3, high=0),
                x(2, steps, groups, 5),
                x(2, steps, groups, 5),
            ),
            tolerance=40,
        )
        for channels, heads, decays, groups, steps in (
            (19, 19, 5, 1, 13),
            (12, 6, 1, 2, 1),
            (54, 2, 1, 1, 37),
            (3 * 75, 3, 1, 3, 16),
        )
    ),
    Case("conv", (x(2, 6, 8, 9), weight(12, 2, 3, 2), weight(12)), CONV2D),
    Case("conv", (x(2, 3, 20), weight(40, 3, 4)), CONV1D),
    Case("conv", (x(2, 6, 8, 9), weight(12, 6, 1, 1), weight(12)), POINTWISE),
    Case("conv", (x(3, 7, 1, 1), weight(5, 7, 1, 1)), POINTWISE),
    *(
        Case(
            "conv_epilogue",
            (x(2, 6, 8, 9), weight(12, size, 1, 1), *operands),
            {
                **({**POINTWISE, "groups": 6 // size}),
                "has_scale": len(operands) > 1,
                "has_bias": len(operands) > 1,
                "has_residual": len(operands) != 2,
                "activation": activation,
            },
        )
        for size, activation, operands in (
            (6, "none", (x(2, 12, 8, 9),)),
            (2, "hardswish", (Operand((12,), "f32"), Operand((12,), "f32"))),
            (1, "relu", (Operand((12,), "f32"), Operand((12,), "f32"), x(2, 12, 8, 9))),
        )
    ),
    Case("take", (x(9, 6), index(9, 2, 3, low=-9)), {"axis": 0}, dtypes=EXACT),
    Case("take", (x(3, 9, 2), index(9, dtype="i32")), {"axis": 1}, dtypes=EXACT),
    Case("gather", (x(4, 5, 6), index(5, 4, 3, 6)), {"axis": 1}, dtypes=EXACT),
    Case("index", (x(3, 4, 5, 2), index(4, 6, 1), index(5, 7)), {"axes": (1, 2)}, dtypes=EXACT),
    Case("scatter", (x(4, 9), index(9, 3, 5), x(3, 5)), {"axis": 1, "reduce": "add"}),
    Case("scatter", (x(4, 9), index(4, 3, 5), x(3, 5)), {"axis": 0, "reduce": "amax"}),
    Case(
        "index_put",
        (x(3, 4, 5, 2), x(3, 1, 7, 1), index(4, 6, 1), index(5, 7)),
        {"axes": (1, 2), "accumulate": True},
        tolerance=20,
    ),
    Case("index_put", (x(9, 4), x(4), index(9, 6)), {"axes": (0,), "accumulate": False}),
    Case("sort", (x(3, 30, 2),), {"axis": 1, "descending": True, "stable": True}, dtypes=EXACT),
    Case("topk", (x(3, 30),), {"axis": -1, "k": 4, "largest": True}, dtypes=EXACT),
    Case("argmax", (x(3, 30, 2),), {"axis": 1, "keepdims": True}, dtypes=EXACT),
    Case("argmin", (x(3, 30),), {"axis": 1, "keepdims": False}, dtypes=EXACT),
    Case("cumsum", (x(3, 30, 2),), {"axis": 1}, tolerance=20),
    Case("cumprod", (x(3, 3),), {"axis": 1}),
    Case("histogram", (x(90),), {"bins": 7, "low": -1.0, "high": 1.0}),
    Case(
        "solve_triangular",
        (Operand((2, 6, 6), "", low=1, high=4), x(1, 6, 9)),
        {"upper": False, "unit_diagonal": False},
        dtypes=("f32", "f64"),
        tolerance=2000,
    ),
)


def draw(rng: np.random.Generator, operand: Operand, dtype: str) -> np.ndarray:
    """Values in storage form."""
    bounds = (operand.low, operand.high) if operand.high > operand.low else (-9, 9)
    if DTYPES[dtype].is_float and operand.high <= operand.low:
        return encode(rng.standard_normal(operand.shape), dtype)
    numbers = rng.integers(*bounds, operand.shape)
    return encode(numbers, dtype) if DTYPES[dtype].is_float else numbers.astype(DTYPES[dtype].numpy)


def widened(stored: np.ndarray, dtype: str) -> np.ndarray:
    if DTYPES[dtype].is_float:
        return decode(stored, dtype)
    return stored if dtype == "bool" else stored.astype(np.int64)


def laid_out(
    values: np.ndarray, dtype: str, layout: str, buffer: int
) -> tuple[np.ndarray, Storage]:
    """A buffer with `values` inside, as `layout` permits, and their storage."""
    shape = values.shape
    if layout == "contiguous" or values.ndim == 0:
        base = values.copy()
        view, offset = base, 0
    elif layout == "rows":
        base = np.zeros((*shape[:-1], shape[-1] + 3), values.dtype)
        view, offset = base[..., 1 : 1 + shape[-1]], 1
    else:  # axes in reverse order, every other element along what is the last one in memory
        base = np.zeros((*shape[:0:-1], 2 * shape[0]), values.dtype)
        view, offset = base[..., 1::2].transpose(), 1
    view[...] = values
    steps = tuple(step // values.itemsize for step in view.strides)
    return base, Storage(buffer, dtype, shape, steps, offset)


def number(param: object, symbols: Mapping[str, int]) -> int:
    if isinstance(param, float):
        return bits(param)
    assert isinstance(param, int | Expr)
    return evaluate(param, symbols)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(case, dtype, id=f"{case.name}-{dtype}")
        for case in CASES
        for dtype in (*case.dtypes, *(("f64",) if case.op in DOUBLE else ()))
    ],
)
def test_record(module: Module, case: Case, dtype: str) -> None:
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    graph = Graph(symbols={"batch": (1, 64)})
    names: list[str] = []
    stored: list[np.ndarray] = []
    for position, operand in enumerate(case.operands):
        kind = operand.dtype or dtype
        values = draw(rng, operand, kind)
        if case.op == "grouped_mm" and kind == "i32":
            values = np.sort(values)  # ends of consecutive groups
        stored.append(values)
        name = f"v{position}"
        if operand.weight:
            names.append(graph.add_parameter(name, from_array(name, kind, values)))
        else:
            names.append(graph.add_input(name, TensorType(kind, operand.shape)))
    node = graph.add(case.op, names, case.attrs)
    choice = choose(graph, node, TARGET)
    kernel = choice.kernel
    assert kernel is not None, choice.reason
    assert kernel.name == (case.kernel or f"{case.op}.cpp")

    buffers, storages = operands_of(graph, kernel, case, dtype, stored)
    results = results_of(graph, kernel, len(buffers))
    outputs = tuple(storage for _, storage in results)
    call = Call(graph, node, TARGET, tuple(storages), outputs)
    (launch,) = kernel.launches(call)
    memory = [*buffers, *(base for base, _ in results)]
    passed = [
        memory[storage.buffer].reshape(-1)[evaluate(storage.offset, {}) :]
        for storage in launch.operands
    ]
    after = module.call(launch.symbol, passed, [number(param, {}) for param in launch.params])
    assert module.error[0] == 0

    wide = [
        widened(values, operand.dtype or dtype)
        for values, operand in zip(stored, case.operands, strict=True)
    ]
    types = tuple(graph.type(value) for value in node.outputs)
    expected = OPS[case.op].reference(wide, node.attrs, types)
    for storage, type, right in zip(outputs, types, expected, strict=True):
        place = [operand.buffer for operand in launch.operands].index(storage.buffer)
        base = memory[storage.buffer]
        flat = base.reshape(-1).copy()
        flat[len(flat) - len(after[place]) :] = after[place]
        shape = [evaluate(size, {}) for size in storage.shape]
        steps = [evaluate(step, {}) * base.itemsize for step in storage.strides]
        got = np.lib.stride_tricks.as_strided(flat[evaluate(storage.offset, {}) :], shape, steps)
        compare(got, right, type, case.tolerance)


def operands_of(
    graph: Graph, kernel: Kernel, case: Case, dtype: str, stored: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], list[Storage]]:
    node = next(graph.nodes())
    layouts = kernel.layouts(graph, node)
    packings = kernel.packing(graph, node, TARGET)
    buffers: list[np.ndarray] = []
    storages: list[Storage] = []
    for position, (operand, values) in enumerate(zip(case.operands, stored, strict=True)):
        kind = operand.dtype or dtype
        if position in packings:
            packed = packings[position](graph.parameters[node.inputs[position]])
            base = packed.load()
            buffers.append(base)
            storages.append(Storage(position, "u8", (base.nbytes,), (1,)))
            continue
        base, storage = laid_out(values, kind, layouts[position], position)
        buffers.append(base)
        storages.append(storage)
    return buffers, storages


def results_of(graph: Graph, kernel: Kernel, first: int) -> list[tuple[np.ndarray, Storage]]:
    node = next(graph.nodes())
    layouts = kernel.layouts(graph, node)[len(node.inputs) :]
    results = []
    for position, (value, layout) in enumerate(zip(node.outputs, layouts, strict=True)):
        kind = graph.type(value)
        assert all(isinstance(size, int) for size in kind.shape)
        shape = tuple(evaluate(size, {}) for size in kind.shape)
        if kind.element.is_float:
            empty = encode(np.full(shape, np.nan), kind.dtype)
        else:
            empty = np.full(shape, -77, kind.element.numpy)
        results.append(laid_out(empty, kind.dtype, layout, first + position))
    return results


def compare(got: np.ndarray, right: np.ndarray, type: TensorType, tolerance: float) -> None:
    if not type.element.is_float:
        assert (got == right).all()
        return
    actual = decode(got, type.dtype)
    assert not np.isnan(actual).any(), "an element was not written"
    unit = 2.0**-53 if type.dtype == "f64" else ULP[type.dtype]
    scale = max(1.0, float(np.abs(right).max(initial=0)))
    error = float(np.abs(actual - right).max(initial=0)) / scale
    small = 1e-14 if type.dtype == "f64" else 1e-6
    assert error <= tolerance * (unit + small), f"error {error / unit:.3g} units"


def test_sizes_may_be_symbols() -> None:
    batch = symbol("batch")
    graph = Graph(symbols={"batch": (1, 64)})
    value = graph.add_input("x", TensorType("f32", (batch, 7, 33)))
    node = graph.add("rms_norm", [value], {**NORM, "has_weight": False})
    kernel = choose(graph, node, TARGET).kernel
    assert kernel is not None
    dense = Storage(0, "f32", (batch, 7, 33), (231, 33, 1))
    sliced = Storage(1, "f32", (batch, 7, 33), (462, 66, 1))
    (merged,) = kernel.launches(Call(graph, node, TARGET, (dense,), (sliced,)))
    assert merged.params[:12] == (1, 1, 1, 7 * batch, 0, 0, 0, 33, 0, 0, 0, 66)
    apart = Storage(1, "f32", (batch, 7, 33), (1000, 66, 1))
    (separate,) = kernel.launches(Call(graph, node, TARGET, (dense,), (apart,)))
    assert separate.params[:12] == (1, 1, batch, 7, 0, 0, 231, 33, 0, 0, 1000, 66)


def test_a_refusal_says_why() -> None:
    graph = Graph()
    x, w = (graph.add_input(name, TensorType("f64", (3, 4))) for name in "xw")
    ends = graph.add_input("ends", TensorType("i32", (3,)))
    cube = graph.add("reshape", [w], {"shape": (3, 4, 1)}).output
    node = graph.add("grouped_mm", [x, cube, ends])
    choice = choose(graph, node, TARGET)
    assert choice.kernel is None
    assert choice.reason == (
        "grouped_mm.cpp: it packs the weights ahead of time, and these are computed at run time"
    )
