"""Every translated operator against onnxruntime, on odd sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_models import Array, assert_same, imported, integers, model_of, opaque, random, run_onnx

from fusec.diagnostics import UnsupportedError
from fusec.formats import magnitudes, rounded
from fusec.ir.interpret import interpret

X = random(3, 5, 7)
POSITIVE = np.abs(X) + 0.1
INT = integers(-9, 9, 3, 5)
FLAGS = random(3, 5) > 0
IMAGE = random(2, 6, 9, 11)


@dataclass(frozen=True)
class Case:
    """One node: operands are inputs, or constants where the name begins with `c`."""

    op: str
    operands: Mapping[str, Array | None]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    opset: int = 17
    label: str = ""
    tolerance: float = 2e-5

    def __str__(self) -> str:
        return "-".join(filter(None, (self.op, self.label, str(self.opset))))


def unary(op: str, x: Array = X, opset: int = 17, **attrs: Any) -> Case:
    return Case(op, {"x": x}, attrs, opset=opset, label="_".join(map(str, attrs.values())))


def binary(op: str, a: Array, b: Array, label: str = "", opset: int = 17, **attrs: Any) -> Case:
    return Case(op, {"a": a, "b": b}, attrs, opset=opset, label=label)


def ints(*items: int) -> Array:
    return np.array(items, dtype=np.int64)


def floats(*items: float) -> Array:
    return np.array(items, dtype=np.float32)


def scalar(item: Any, dtype: Any = np.float32) -> Array:
    return np.array(item, dtype=dtype)


UNARY = [
    *(
        unary(op)
        for op in (
            "Abs Atan Ceil Cos Erf Exp Floor HardSwish Identity Neg Reciprocal Relu Round Sigmoid "
            "Sign Sin Softplus Softsign Tanh Asinh Tan Sinh Cosh"
        ).split()
    ),
    *(unary(op, np.clip(X, -0.9, 0.9)) for op in ("Acos", "Asin", "Atanh")),
    *(unary(op, POSITIVE) for op in ("Log", "Sqrt")),
    unary("Acosh", POSITIVE + 1),
    unary("Mish", opset=18),
    unary("Gelu", opset=20, approximate="none"),
    unary("Gelu", opset=20, approximate="tanh"),
    unary("IsNaN", np.where(X > 0, X, np.nan).astype(np.float32)),
    unary("IsInf", np.where(X > 0, X, -np.inf).astype(np.float32)),
    unary("IsInf", np.where(X > 0, X, -np.inf).astype(np.float32), detect_negative=0),
    unary("LeakyRelu", alpha=0.2),
    unary("Elu", alpha=0.7),
    unary("Selu"),
    unary("Celu", alpha=1.3),
    unary("ThresholdedRelu", alpha=0.4),
    unary("Shrink", lambd=0.3, bias=0.1),
    unary("HardSigmoid"),
    unary("HardSigmoid", alpha=1 / 6, beta=0.5),
    unary("Not", FLAGS),
    unary("Cast", X, to=7),
    unary("Cast", X, to=9),
    unary("Cast", INT, to=1),
    unary("Cast", FLAGS, to=1),
    unary("BitwiseNot", INT, opset=18),
]
BINARY = [
    *(binary(op, X, random(5, 1)) for op in ("Add", "Sub", "Mul", "Div")),
    *(binary(op, INT, integers(1, 5, 5)) for op in ("Add", "Sub", "Mul", "Div", "Mod")),
    *(binary(op, INT, integers(-9, -1, 5), "negative") for op in ("Div", "Mod")),
    binary("Mod", INT, integers(-9, -1, 5), "fmod", fmod=1),
    binary("Mod", X, random(7), "fmod", fmod=1),
    binary("Div", integers(0, 200, 9, dtype=np.uint8), integers(1, 9, 9, dtype=np.uint8), "u8"),
    *(
        binary(op, X, random(5, 7))
        for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    ),
    binary("Equal", FLAGS, ~FLAGS, "bool"),
    *(binary(op, FLAGS, random(1, 5) > 0) for op in ("And", "Or", "Xor")),
    *(binary(op, INT, INT[::-1].copy(), opset=18) for op in ("BitwiseAnd", "BitwiseOr")),
    binary("BitwiseXor", INT, INT[::-1].copy(), opset=18),
    *(
        binary(
            "BitShift", integers(0, 60, 9, dtype=np.uint8), np.full(9, 2, np.uint8), d, direction=d
        )
        for d in ("LEFT", "RIGHT")
    ),
    binary("Pow", POSITIVE, random(7)),
    binary("Pow", X, scalar(3, np.int64), "integer exponent"),
    binary("Pow", integers(1, 6, 3, 5), floats(2.0), "integer base"),
    binary("Max", X, random(7)),
    binary("Min", X, random(7)),
    binary("Sum", X, random(7)),
    binary("Mean", X, random(7)),
    binary("PRelu", X, random(5, 1)),
    Case("Where", {"c0": FLAGS[:, :, None], "a": X, "b": random(7)}),
    Case("Max", {"a": X, "b": random(7), "d": random(5, 1)}, label="three"),
    Case("Clip", {"x": X, "c1": scalar(-0.5), "c2": scalar(0.4)}),
    Case("Clip", {"x": X, "c1": None, "c2": scalar(0.4)}, label="max"),
    Case("Clip", {"x": X, "low": scalar(-0.5), "high": scalar(0.4)}, label="dynamic"),
    binary("CastLike", X, INT),
]
REDUCTIONS = [
    *(
        Case(op, {"x": POSITIVE, "c0": ints(1, -1)}, {"keepdims": keep}, opset=18)
        for op in (
            "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 "
            "ReduceSumSquare ReduceLogSum ReduceLogSumExp"
        ).split()
        for keep in (0, 1)
    ),
    unary("ReduceMean", axes=[1, 2], keepdims=0),
    Case("ReduceSum", {"x": X}, label="all"),
    Case("ReduceSum", {"x": X}, {"noop_with_empty_axes": 1}, label="none"),
    unary("ReduceMax", axes=[-1], opset=13),
    *(unary("Softmax", opset=o, axis=1) for o in (11, 12, 13)),
    unary("Softmax", opset=13),
    unary("Softmax", opset=11),
    unary("LogSoftmax", opset=11, axis=1),
    unary("LogSoftmax", opset=13, axis=1),
    unary("Hardmax", axis=1),
    *(unary(op, axis=1, keepdims=k) for op in ("ArgMax", "ArgMin") for k in (0, 1)),
    unary("ArgMax", INT, axis=1, select_last_index=1),
    Case("TopK", {"x": X, "c0": ints(3)}, {"axis": 1}, outputs=2),
    Case("TopK", {"x": X, "c0": ints(2)}, {"largest": 0}, outputs=2, label="smallest"),
    *(
        Case(
            "CumSum",
            {"x": X, "c0": scalar(1, np.int64)},
            {"exclusive": e, "reverse": r},
            label=f"{e}{r}",
        )
        for e in (0, 1)
        for r in (0, 1)
    ),
    unary("LpNormalization", axis=1, p=2),
    unary("LpNormalization", axis=-1, p=1),
    unary("LpNormalization", X * np.array([0, 1, 1], np.float32)[:, None, None], axis=-1, p=2),
    unary("LpNormalization", X * np.array([0, 1, 1], np.float32)[:, None, None], axis=1, p=1),
]
MOVES = [
    Case("Reshape", {"x": X, "c0": ints(0, -1)}),
    Case("Reshape", {"x": X, "c0": ints(7, 5, 3)}, label="plain"),
    Case("Reshape", {"x": X[:0], "c0": ints(0, 7, 5)}, {"allowzero": 1}, label="zero"),
    unary("Transpose", perm=[2, 0, 1]),
    unary("Transpose"),
    *(unary("Flatten", axis=a) for a in (0, 1, 2, -1)),
    Case("Squeeze", {"x": X[:, None, :, None]}),
    Case("Squeeze", {"x": X[:, None], "c0": ints(1)}, label="axes"),
    unary("Squeeze", X[:, None], opset=11, axes=[1]),
    Case("Unsqueeze", {"x": X, "c0": ints(0, -1)}),
    unary("Unsqueeze", opset=11, axes=[0, 2]),
    Case("Expand", {"x": random(5, 1), "c0": ints(3, 1, 7)}),
    Case("Concat", {"a": X, "b": random(3, 2, 7)}, {"axis": 1}),
    Case("Concat", {"a": X, "b": random(3, 5, 1)}, {"axis": -1}, label="last"),
    *(
        Case(
            "Slice",
            {"x": X, "c0": ints(s), "c1": ints(e), "c2": ints(a), "c3": ints(t)},
            label=f"{s},{e},{t}",
        )
        for s, e, a, t in (
            (1, 4, 1, 1),
            (-3, 2**63 - 1, 2, 2),
            (0, -1, 2, 3),
            (2, 100, 0, 1),
            (-1, -(2**63) + 1, 1, -1),
            (4, 0, 1, -2),
            (100, -100, 2, -3),
            (-9, -(2**63) + 1, 1, -1),
            (3, 1, 1, 1),
        )
    ),
    Case("Split", {"x": X, "c0": ints(2, 3)}, {"axis": 1}, outputs=2),
    Case("Split", {"x": X}, {"axis": 2, "num_outputs": 3}, outputs=3, opset=18),
    Case("Split", {"x": random(3, 6)}, {"axis": 1}, outputs=2, label="equal"),
    Case("Tile", {"x": X, "c0": ints(1, 2, 3)}),
    Case("Pad", {"x": X, "c0": ints(0, 1, 2, 0, 3, 1), "c1": scalar(1.5)}),
    Case("Pad", {"x": X, "c0": ints(0, 1, 2, 0, -2, 1)}, label="crop"),
    Case("Pad", {"x": X, "c0": ints(2, 1), "c1": None, "c2": ints(-1)}, opset=18, label="axes"),
    *(
        Case("Pad", {"x": X, "c0": ints(0, 2, 3, 0, 1, 2)}, {"mode": mode}, label=mode)
        for mode in ("reflect", "edge")
    ),
    unary("DepthToSpace", random(2, 12, 3, 5), blocksize=2),
    unary("DepthToSpace", random(2, 12, 3, 5), blocksize=2, mode="CRD"),
    unary("SpaceToDepth", random(2, 3, 4, 6), blocksize=2),
    *(
        Case("Trilu", {"x": X, "c0": scalar(k, np.int64)}, {"upper": u}, label=f"{k}{u}")
        for k in (-1, 0, 2)
        for u in (0, 1)
    ),
    unary("Trilu", FLAGS),
    unary("EyeLike", random(3, 5), k=1),
    Case(
        "Range", {"c0": scalar(3, np.int64), "c1": scalar(-5, np.int64), "c2": scalar(-2, np.int64)}
    ),
    Case("Range", {"c0": scalar(0.5), "c1": scalar(2.0), "c2": scalar(0.25)}, label="float"),
    Case("ConstantOfShape", {"c0": ints(2, 3)}),
]
INDEXING = [
    Case("Gather", {"x": X, "i": integers(-5, 5, 2, 3)}, {"axis": 1}),
    Case("Gather", {"x": X, "c0": scalar(-2, np.int64)}, {"axis": 1}, label="scalar"),
    Case("GatherElements", {"x": X, "i": integers(0, 5, 3, 2, 7)}, {"axis": 1}),
    Case("GatherND", {"x": X, "i": integers(0, 3, 4, 2)}),
    Case("GatherND", {"x": X, "i": integers(0, 5, 3, 4, 1)}, {"batch_dims": 1}, label="batch"),
    Case(
        "ScatterElements", {"x": X, "i": integers(0, 1, 3, 1, 7), "u": random(3, 1, 7)}, {"axis": 1}
    ),
    *(
        Case(
            "ScatterElements",
            {"x": X, "i": integers(0, 5, 3, 4, 7), "u": random(3, 4, 7)},
            {"axis": 1, "reduction": reduction},
            opset=18,
            label=reduction,
        )
        for reduction in ("add", "mul", "max", "min")
    ),
    Case("ScatterND", {"x": X, "c0": ints(2, 0)[:, None], "u": random(2, 5, 7)}),
    Case(
        "ScatterND",
        {"x": X, "i": integers(0, 3, 4, 2), "u": random(4, 7)},
        {"reduction": "add"},
        opset=16,
    ),
    Case(
        "OneHot",
        {"i": integers(-4, 7, 3, 2), "c0": scalar(4, np.int64), "c1": floats(-1, 2)},
        {"axis": 1},
    ),
    Case("OneHot", {"i": integers(0, 4, 3, 2), "c0": ints(4), "v": floats(0, 1)}, label="last"),
    Case("Compress", {"x": X, "c0": np.array([True, False, True])}, {"axis": 0}),
    Case(
        "ReverseSequence",
        {"x": random(5, 3, 2), "n": ints(5, 1, 3)},
        {"time_axis": 0, "batch_axis": 1},
    ),
]
LINEAR = [
    binary("MatMul", X, random(7, 4)),
    Case("MatMul", {"x": X, "c0": random(7, 4)}, label="weight"),
    binary("MatMul", random(2, 1, 3, 5), random(4, 5, 6), "batch"),
    binary("MatMul", random(5), random(3, 5, 6), "row"),
    binary("MatMul", random(3, 4, 5), random(5), "column"),
    binary("MatMul", random(5), random(5), "dot"),
    *(
        Case(
            "Gemm",
            {
                "a": random(*((5, 3) if ta else (3, 5))),
                ("c0" if w else "b"): random(*((4, 5) if tb else (5, 4))),
                "c1": random(4),
            },
            {"transA": ta, "transB": tb, "alpha": alpha, "beta": beta},
            label=f"{ta}{tb}{w}",
        )
        for ta, tb, w, alpha, beta in (
            (0, 0, 0, 1.0, 1.0),
            (0, 1, 1, 1.0, 1.0),
            (1, 0, 1, 0.5, 2.0),
            (1, 1, 0, 0.5, 0.0),
        )
    ),
    *(
        Case(
            "Einsum",
            {f"x{i}": a for i, a in enumerate(arrays)},
            {"equation": equation},
            label=equation,
        )
        for equation, arrays in (
            ("bhqd,bhkd->bhqk", (random(2, 3, 4, 5), random(2, 3, 6, 5))),
            ("bhqk,bkhd->bqhd", (random(2, 3, 4, 5), random(2, 5, 3, 6))),
            ("ij,jk,kl", (random(3, 4), random(4, 5), random(5, 6))),
            ("i,j->ij", (random(3), random(4))),
            ("bij->ji", (random(2, 3, 4),)),
            ("bn,nd->bd", (random(2, 3), random(3, 4))),
        )
    ),
    Case(
        "Einsum",
        {"x": random(2, 3, 4), "c0": random(4, 5)},
        {"equation": "bsi,io->bso"},
        label="weight",
    ),
]
NORMS = [
    Case(
        "LayerNormalization", {"x": X, "c0": random(7), "c1": random(7, seed=2)}, {"epsilon": 1e-3}
    ),
    Case("LayerNormalization", {"x": X, "c0": random(5, 7)}, {"axis": 1}, label="axis"),
    Case("LayerNormalization", {"x": X, "c0": random(7)}, outputs=3, label="statistics"),
    Case("InstanceNormalization", {"x": IMAGE, "c0": random(6), "c1": random(6, seed=2)}),
    Case(
        "GroupNormalization",
        {"x": IMAGE, "c0": random(6), "c1": random(6, seed=2)},
        {"num_groups": 3},
        opset=21,
    ),
    Case(
        "BatchNormalization",
        {
            "x": IMAGE,
            "c0": random(6),
            "c1": random(6, seed=2),
            "c2": random(6, seed=3),
            "c3": POSITIVE[0, 0, :6],
        },
        {"epsilon": 1e-3},
    ),
    Case(
        "BatchNormalization",
        {
            "x": IMAGE,
            "s": random(6),
            "b": random(6, seed=2),
            "m": random(6, seed=3),
            "v": POSITIVE[0, 0, :6],
        },
        label="inputs",
    ),
    unary("MeanVarianceNormalization", IMAGE, axes=[0, 2, 3]),
]
SPATIAL = [
    Case(
        "Conv",
        {"x": IMAGE, "c0": random(4, 6, 3, 2), "c1": random(4)},
        {"strides": [2, 1], "pads": [1, 0, 2, 1]},
    ),
    Case(
        "Conv",
        {"x": IMAGE, "c0": random(6, 2, 3, 3)},
        {"group": 3, "dilations": [2, 1], "pads": [1, 1, 1, 1]},
        label="groups",
    ),
    Case(
        "Conv",
        {"x": IMAGE, "c0": random(4, 6, 3, 2)},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        label="upper",
    ),
    Case("Conv", {"x": IMAGE, "c0": random(4, 6, 3, 2)}, {"auto_pad": "SAME_LOWER"}, label="lower"),
    Case("Conv", {"x": random(2, 3, 12), "c0": random(4, 3, 4)}, {"strides": [4]}, label="1d"),
    Case(
        "ConvTranspose",
        {"x": IMAGE, "c0": random(6, 4, 2, 3), "c1": random(4)},
        {"strides": [2, 3]},
    ),
    *(
        unary(op, IMAGE, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1])
        for op in ("MaxPool", "AveragePool")
    ),
    unary("AveragePool", IMAGE, kernel_shape=[3, 2], pads=[1, 0, 1, 1], count_include_pad=1),
    unary("AveragePool", IMAGE, kernel_shape=[2, 2], strides=[2, 2]),
    unary("MaxPool", IMAGE, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    unary("AveragePool", IMAGE, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, opset=19),
    unary("MaxPool", IMAGE, kernel_shape=[2, 2], dilations=[2, 3]),
    unary("GlobalAveragePool", IMAGE),
    unary("GlobalMaxPool", IMAGE),
    *(
        Case(
            "Resize",
            {"x": IMAGE, "c0": None, "c1": floats(1, 1, 2, 1.5)},
            {"mode": mode, "coordinate_transformation_mode": how, "nearest_mode": near},
            label=f"{mode}-{how}-{near}",
        )
        for mode, how, near in (
            ("nearest", "asymmetric", "floor"),
            ("nearest", "half_pixel", "round_prefer_floor"),
            ("nearest", "pytorch_half_pixel", "round_prefer_ceil"),
            ("linear", "half_pixel", "floor"),
            ("linear", "align_corners", "floor"),
            ("linear", "asymmetric", "floor"),
        )
    ),
    Case(
        "Resize",
        {"x": IMAGE, "c0": None, "c1": None, "c2": ints(2, 6, 5, 7)},
        {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
        label="sizes",
    ),
]
QUANTISED = [
    Case("QuantizeLinear", {"x": X * 9, "c0": scalar(0.1), "c1": scalar(7, np.uint8)}),
    Case(
        "QuantizeLinear",
        {"x": X * 9, "c0": floats(0.1, 0.2, 0.3, 0.4, 0.5), "c1": np.zeros(5, np.int8)},
        {"axis": 1},
        label="axis",
    ),
    Case(
        "DequantizeLinear",
        {"x": integers(0, 255, 3, 5, dtype=np.uint8), "c0": scalar(0.1), "c1": scalar(7, np.uint8)},
    ),
    Case(
        "DequantizeLinear",
        {
            "c0": integers(-9, 9, 4, 5, dtype=np.int8),
            "c1": floats(0.1, 0.2, 0.3, 0.4, 0.5),
            "c2": integers(-3, 3, 5, dtype=np.int8),
        },
        {"axis": 1},
        label="weight",
    ),
    Case(
        "DequantizeLinear",
        {
            "c0": integers(-9, 9, 6, 5, dtype=np.int8),
            "c1": np.abs(random(3, 5)),
            "c2": integers(-3, 3, 3, 5, dtype=np.int8),
        },
        {"axis": 0, "block_size": 2},
        opset=21,
        label="blocks",
    ),
    Case("DynamicQuantizeLinear", {"x": X}, outputs=3),
]


REFUSED = ("ReduceSum-none-17", "Einsum-bij->ji-17")
"""What onnxruntime 1.22.2 fails on; onnx's own reference is used instead."""


def _model(case: Case) -> tuple[Any, dict[str, Array]]:
    names = [name if array is not None else "" for name, array in case.operands.items()]
    given = {name: array for name, array in case.operands.items() if array is not None}
    inputs = {name: array for name, array in given.items() if not name.startswith("c")}
    constants = {name: array for name, array in given.items() if name.startswith("c")}
    outputs = [f"y{index}" for index in range(case.outputs)]
    node = helper.make_node(case.op, names, outputs, **case.attrs)
    return model_of([node], inputs, outputs, constants=constants, opset=case.opset), inputs


@pytest.mark.parametrize(
    "case",
    [*UNARY, *BINARY, *REDUCTIONS, *MOVES, *INDEXING, *LINEAR, *NORMS, *SPATIAL, *QUANTISED],
    ids=str,
)
def test_operator(case: Case, tmp_path: Path) -> None:
    model, inputs = _model(case)
    graph = imported(model, tmp_path)
    assert not opaque(graph)
    wanted = (
        run_onnx(model, inputs)
        if str(case) not in REFUSED
        else ReferenceEvaluator(model).run(None, inputs)
    )
    assert_same(graph, inputs, wanted, case.tolerance)


def test_int4_weights(tmp_path: Path) -> None:
    """4-bit integers are unpacked and dequantised when the weight is read."""
    levels = integers(-8, 8, 5, 4, dtype=np.int8)
    scale = np.abs(random(5))
    packed = helper.make_tensor("w", 22, levels.shape, levels.ravel().tolist())
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=0),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    inputs = {"x": random(3, 5)}
    model = model_of(nodes, inputs, ["y"], constants={"s": scale}, opset=21)
    model.graph.initializer.append(packed)
    graph = imported(model, tmp_path)
    assert [node.op for node in graph.nodes()] == ["linear"]
    wanted = inputs["x"].astype(np.float64) @ (levels * scale[:, None].astype(np.float64))
    assert_same(graph, inputs, [wanted])


def test_sequences_leave_no_nodes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("SplitToSequence", ["x", "n"], ["s"], axis=1),
        helper.make_node("SequenceAt", ["s", "one"], ["b"]),
        helper.make_node("SequenceAt", ["s", "last"], ["a"]),
        helper.make_node("SequenceConstruct", ["a", "b"], ["t"]),
        helper.make_node("ConcatFromSequence", ["t"], ["y"], axis=1),
    ]
    constants = {"n": ints(2, 3), "one": scalar(1, np.int64), "last": scalar(-2, np.int64)}
    inputs = {"x": random(4, 5)}
    model = model_of(nodes, inputs, ["y"], constants=constants)
    graph = imported(model, tmp_path)
    assert {node.op for node in graph.nodes()} == {"slice", "concat"}
    assert_same(graph, inputs, run_onnx(model, inputs))


def test_constants_of_every_kind(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["a"], value_float=2.5),
        helper.make_node("Constant", [], ["b"], value_floats=[1.0, 2.0, 3.0]),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(random(2, 3))),
        helper.make_node("Constant", [], ["i"], value_ints=[1, 0]),
        helper.make_node("Mul", ["x", "a"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["q"]),
        helper.make_node("Add", ["q", "c"], ["r"]),
        helper.make_node("Gather", ["r", "i"], ["y"]),
    ]
    inputs = {"x": random(2, 3, seed=4)}
    model = model_of(nodes, inputs, ["y"])
    assert_same(imported(model, tmp_path), inputs, run_onnx(model, inputs))


@pytest.mark.parametrize(
    ("node", "constants"),
    [
        (("Add", ["c", "c"], {}), {"c": np.array([100, -128, 127], np.int8)}),
        (("Mul", ["c", "c"], {}), {"c": np.array([70000, -3, 1 << 30], np.int32)}),
        (("Cast", ["c"], {"to": 6}), {"c": ints(1 << 31, -5, (1 << 40) + 3)}),
        (("Cast", ["c"], {"to": 3}), {"c": ints(300, 5, -200)}),
        (("Cast", ["c"], {"to": 2}), {"c": ints(300, 5, -200)}),
    ],
    ids=["add", "mul", "i32", "i8", "u8"],
)
def test_what_is_computed_while_importing_wraps_around(
    node: tuple[str, list[str], dict[str, Any]], constants: dict[str, Array], tmp_path: Path
) -> None:
    """Constants of narrow integers, as onnxruntime computes them."""
    op, operands, attrs = node
    nodes = [
        helper.make_node(op, operands, ["narrow"], **attrs),
        helper.make_node("Cast", ["narrow"], ["wide"], to=1),
        helper.make_node("Add", ["x", "wide"], ["y"]),
    ]
    inputs = {"x": random(3)}
    model = model_of(nodes, inputs, ["y"], constants=constants)
    graph = imported(model, tmp_path)
    assert_same(graph, inputs, run_onnx(model, inputs))


@pytest.mark.parametrize("flags", [np.array([True, False, True]), np.array([1, 0, 3], np.int32)])
def test_places_of_a_constant_are_i64(flags: Array, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["c"], ["places"]),
        helper.make_node("Gather", ["x", "places"], ["y"]),
    ]
    inputs = {"x": random(3)}
    model = model_of(nodes, inputs, ["y", "places"], constants={"c": flags})
    graph = imported(model, tmp_path)
    assert graph.type(graph.outputs[1]).dtype == "i64"
    assert_same(graph, inputs, run_onnx(model, inputs))


def test_empty_constants(tmp_path: Path) -> None:
    """Where an axis in the middle has no elements, the others keep their sizes."""
    nodes = [
        helper.make_node("Cast", ["c"], ["y"], to=1),
        helper.make_node("Concat", ["x", "c"], ["z"], axis=1),
    ]
    inputs = {"x": integers(0, 9, 2, 3, 4)}
    model = model_of(nodes, inputs, ["y", "z"], constants={"c": np.zeros((2, 0, 4), np.int64)})
    assert_same(imported(model, tmp_path), inputs, run_onnx(model, inputs))


FLOATS8 = {"f8e4m3fn": 17, "f8e4m3fnuz": 18, "f8e5m2": 19}
BEYOND = floats(0.1, 240, 448, 460, 1000, -1e5, np.inf, -np.inf, np.nan, 57344, 7e4, 1e-9)


@pytest.mark.parametrize("dtype", FLOATS8)
def test_casts_to_float8_saturate(dtype: str, tmp_path: Path) -> None:
    """What is beyond the type becomes its largest number, not NaN or infinity."""
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=FLOATS8[dtype]),
        helper.make_node("Cast", ["narrow"], ["y"], to=1),
    ]
    inputs = {"x": BEYOND}
    model = model_of(nodes, inputs, ["y"], opset=19)
    (got,) = interpret(imported(model, tmp_path), inputs).values()
    (wanted,) = ReferenceEvaluator(model).run(None, inputs)
    assert np.nanmax(np.abs(got)) == magnitudes(dtype)[-1]
    np.testing.assert_array_equal(rounded(got, dtype), wanted)


def test_casts_to_float8_that_do_not_saturate(tmp_path: Path) -> None:
    node = helper.make_node("Cast", ["x"], ["y"], to=17, saturate=0)
    graph = imported(model_of([node], {"x": BEYOND}, ["y"], opset=19), tmp_path)
    assert [node.op for node in graph.nodes()] == ["cast"]


@pytest.mark.parametrize("dtype", ["f8e4m3fn", "f8e5m2"])
def test_quantisation_to_float8(dtype: str, tmp_path: Path) -> None:
    inputs = {"x": X * 400}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    model = model_of(nodes, inputs, ["y"], constants={"s": scalar(0.5)}, opset=19)
    model.graph.initializer.append(helper.make_tensor("z", FLOATS8[dtype], [], [0.0]))
    graph = imported(model, tmp_path)
    assert not opaque(graph)
    (got,) = interpret(graph, inputs).values()
    np.testing.assert_array_equal(rounded(got / 0.5, dtype) * 0.5, run_onnx(model, inputs)[0])


@pytest.mark.parametrize("op", ["Min", "Max"])
@pytest.mark.parametrize("number_first", [False, True])
def test_the_smaller_of_a_value_and_a_number_is_a_clamp(
    op: str, number_first: bool, tmp_path: Path
) -> None:
    """As PyTorch's exporter writes `clamp(max=...)`: SwiGLU with a limit is found by it."""
    names = ["c", "x"] if number_first else ["x", "c"]
    model = model_of(
        [helper.make_node(op, names, ["y"])], {"x": X}, ["y"], constants={"c": floats(0.3)}
    )
    graph = imported(model, tmp_path)
    assert [node.op for node in graph.nodes()] == ["clamp"]
    assert_same(graph, {"x": X}, run_onnx(model, {"x": X}))


@pytest.mark.parametrize(("element", "zero"), [(22, 1), (21, 7), (22, None), (21, None)])
def test_quantisation_to_four_bits(element: int, zero: int | None, tmp_path: Path) -> None:
    """The levels are those of 4 bits, though 8 hold them."""
    inputs = {"x": X * 3}
    point = [] if zero is None else ["z"]
    more = {} if point else {"output_dtype": element}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", *point], ["q"], **more),
        helper.make_node("DequantizeLinear", ["q", "s", *point], ["y"]),
    ]
    model = model_of(nodes, inputs, ["y"], constants={"s": scalar(0.25)}, opset=21, ir_version=10)
    if point:
        model.graph.initializer.append(helper.make_tensor("z", element, [], [zero]))
    assert_same(imported(model, tmp_path), inputs, run_onnx(model, inputs))


def test_a_cast_like_four_bits_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("CastLike", ["x", "like"], ["y"])
    model = model_of([node], {"x": X}, ["y"], opset=21)
    model.graph.initializer.append(helper.make_tensor("like", 22, [], [1]))
    with pytest.raises(UnsupportedError, match="`CastLike` to 4-bit integers"):
        imported(model, tmp_path)
