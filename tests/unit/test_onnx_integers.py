"""Products of 8-bit integers against onnxruntime's kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime.quantization as quantization
import pytest
from numpy.typing import NDArray
from onnx import helper
from onnx_models import (
    MICROSOFT,
    assert_same,
    imported,
    integers,
    model_of,
    opaque,
    random,
    run_onnx,
    saved,
)

Numbers = NDArray[Any]

U8: Any = np.uint8
I8: Any = np.int8
A = integers(0, 256, 2, 3, 8, dtype=U8)
B = integers(-128, 128, 8, 6, dtype=I8)
COLUMNS = integers(-9, 9, 6, dtype=I8)
SCALES = np.abs(random(6)) / 20 + np.float32(0.01)
IMAGE = integers(0, 256, 1, 4, 7, 8, dtype=U8)
FILTERS = integers(-128, 128, 6, 2, 3, 3, dtype=I8)


def _pair(scale: float, zero: int, dtype: Any = U8) -> tuple[Numbers, Numbers]:
    return np.array(scale, np.float32), np.array(zero, dtype)


def _check(
    folder: Path, op: str, domain: str, x: Numbers, rest: Mapping[str, Numbers], **attrs: Any
) -> None:
    """One node on `x` and constants, to the last bit where its result is integers."""
    count = 3 if op == "DynamicQuantizeLinear" else 1
    outputs = [f"y{i}" for i in range(count)]
    names = ["x", *rest]
    if op == "QLinearConcat":
        names = [*rest, "x", "xs", "xz"]
        rest = {**rest, **dict(zip(("xs", "xz"), _pair(0.03, 100), strict=True))}
    node = helper.make_node(op, names, outputs, domain=domain, **attrs)
    model = model_of([node], {"x": x}, outputs, constants=rest)
    wanted = run_onnx(model, {"x": x})
    graph = imported(model, folder)
    assert not opaque(graph)
    tolerance = 1e-6 if wanted[0].dtype == np.float32 else 0.0
    assert_same(graph, {"x": x}, wanted, tolerance)


def _named(*arrays: Numbers) -> dict[str, Numbers]:
    return {f"c{i}": array for i, array in enumerate(arrays)}


@pytest.mark.parametrize(
    ("op", "x", "rest", "attrs"),
    [
        ("MatMulInteger", A, (B,), {}),
        ("MatMulInteger", A, (B, U8(120), I8(3)), {}),
        ("MatMulInteger", A[0], (B, U8(120), COLUMNS), {}),
        ("QLinearMatMul", A, (*_pair(0.02, 128), B, *_pair(0.05, 0, I8), *_pair(0.1, 90)), {}),
        ("QLinearMatMul", A, (*_pair(0.02, 128), B, SCALES, COLUMNS, *_pair(0.1, 90)), {}),
        ("ConvInteger", IMAGE, (FILTERS.astype(U8), U8(128), U8(9)), {"group": 2}),
        (
            "QLinearConv",
            IMAGE,
            (
                *_pair(0.02, 128),
                FILTERS,
                SCALES,
                COLUMNS * I8(0),
                *_pair(0.1, 100),
                integers(-500, 500, 6, dtype=np.int32),
            ),
            {"group": 2, "pads": [1, 0, 1, 2], "strides": [2, 1]},
        ),
        ("DynamicQuantizeLinear", random(3, 8) * 0, (), {}),
    ],
)
def test_operators(
    op: str, x: Numbers, rest: tuple[Any, ...], attrs: dict[str, Any], tmp_path: Path
) -> None:
    _check(tmp_path, op, "", x, _named(*map(np.asarray, rest)), **attrs)


@pytest.mark.parametrize(
    ("op", "x", "rest", "attrs"),
    [
        ("DynamicQuantizeMatMul", random(3, 8), (B, SCALES, COLUMNS, random(6)), {}),
        ("DynamicQuantizeMatMul", random(3, 8), (B, np.full(1, 0.03, np.float32)), {}),
        (
            "MatMulIntegerToFloat",
            A,
            (B, *map(np.float32, (0.02, 0.03)), U8(120), I8(2), random(6)),
            {},
        ),
        (
            "QLinearAdd",
            A,
            (*_pair(0.02, 128), A[:1], *_pair(0.03, 100), *_pair(0.05, 120)),
            {},
        ),
        (
            "QLinearMul",
            A,
            (*_pair(0.02, 128), A[:, :1], *_pair(0.03, 100), *_pair(0.05, 120)),
            {},
        ),
        ("QLinearSigmoid", A, (*_pair(0.02, 128), *_pair(0.004, 3)), {}),
        (
            "QLinearGlobalAveragePool",
            IMAGE,
            (*_pair(0.02, 128), *_pair(0.01, 90)),
            {"channels_last": 0},
        ),
        ("QLinearConcat", A, (*_pair(0.05, 120), A[:1], *_pair(0.02, 128)), {"axis": 0}),
        (
            "QGemm",
            A[0],
            (
                *_pair(0.02, 128),
                B.T.copy(),
                SCALES,
                COLUMNS,
                integers(-500, 500, 6, dtype=np.int32),
                *_pair(0.1, 90),
            ),
            {"transB": 1},
        ),
    ],
)
def test_operators_of_onnxruntime(
    op: str, x: Numbers, rest: tuple[Any, ...], attrs: dict[str, Any], tmp_path: Path
) -> None:
    _check(tmp_path, op, MICROSOFT, x, _named(*map(np.asarray, rest)), **attrs)


def _network() -> tuple[onnx.ModelProto, dict[str, Numbers]]:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "d"], ["y"], transB=1),
    ]
    held = {"w": random(6, 3, 3, 3), "b": random(6), "v": random(5, 6), "d": random(5)}
    inputs = {"x": random(2, 3, 8, 8)}
    shapes = {"x": ("batch", 3, 8, 8)}
    return model_of(nodes, inputs, ["y"], constants=held, shapes=shapes), inputs


class _Samples(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self.left = [{"x": random(2, 3, 8, 8, seed=i)} for i in range(4)]

    def get_next(self) -> dict[str, Numbers] | None:
        return self.left.pop() if self.left else None


@pytest.mark.parametrize("form", ["QDQ", "QOperator", "dynamic"])
def test_whole_networks(form: str, tmp_path: Path) -> None:
    """As onnxruntime's own tool quantises them: one product a layer, and no integer ones."""
    model, inputs = _network()
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, ("batch", 5)))
    path, out = saved(model, tmp_path), tmp_path / "quantised.onnx"
    if form == "dynamic":
        kinds = ["MatMul", "Gemm"]  # onnxruntime has no kernel of the convolution that it makes
        quantization.quantize_dynamic(path, out, op_types_to_quantize=kinds)
    else:
        kind = getattr(quantization.QuantFormat, form)
        quantization.quantize_static(path, out, _Samples(), quant_format=kind, per_channel=True)
    quantised = onnx.load(out)
    graph = imported(quantised, tmp_path)
    counts = Counter(node.op for node in graph.nodes())
    assert not opaque(graph)
    assert (counts["conv"], counts["linear"]) == (1, 1)
    types = {graph.type(value).dtype for node in graph.nodes() for value in node.outputs}
    assert "i32" not in types
    assert_same(graph, inputs, run_onnx(quantised, inputs), 1e-6)
