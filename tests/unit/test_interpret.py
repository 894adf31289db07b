"""The interpreter: symbols from shapes, order of evaluation, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from fusec.diagnostics import InputError, UnsupportedError
from fusec.dtypes import DTYPES, f32_to_bf16
from fusec.ir import Graph, TensorType
from fusec.ir.interpret import bind_symbols, interpret
from fusec.ir.weights import from_array
from fusec.symbolic import symbol

BATCH, SEQ = symbol("batch"), symbol("seq")


def _linear_graph() -> Graph:
    graph = Graph(symbols={"batch": (1, None), "seq": (1, 4096)})
    x = graph.add_input("x", TensorType("f32", (BATCH, SEQ, 3)))
    weight = np.arange(15, dtype=np.float32).reshape(5, 3)
    graph.add_parameter("w", from_array("w", "f32", weight))
    y = graph.add("linear", (x, "w")).output
    flat = graph.add("reshape", (y,), {"shape": (BATCH * SEQ, 5)}).output
    total = graph.add("reduce_sum", (flat,), {"axes": (0,), "keepdims": False}).output
    graph.outputs, graph.output_names = [total, y], ["total", "y"]
    return graph


def test_a_graph_with_symbols() -> None:
    x = np.random.default_rng(0).standard_normal((2, 7, 3)).astype(np.float32)
    got = interpret(_linear_graph(), {"x": x})
    expected = x.astype(np.float64) @ np.arange(15.0).reshape(5, 3).T
    np.testing.assert_allclose(got["y"], expected, rtol=1e-14)
    np.testing.assert_allclose(got["total"], expected.sum((0, 1)), rtol=1e-13)
    assert got["y"].dtype == np.float64


def test_parameters_may_be_given() -> None:
    x = np.ones((1, 1, 3), np.float32)
    got = interpret(_linear_graph(), {"x": x}, {"w": np.full((5, 3), 2.0)})
    np.testing.assert_array_equal(got["total"], np.full(5, 6.0))


def test_bf16_bits_are_widened() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType("bf16", (3,)))
    graph.outputs, graph.output_names = [graph.add("neg", (x,)).output], ["y"]
    bits = f32_to_bf16(np.array([1.5, -2.0, 0.25], np.float32))
    np.testing.assert_array_equal(interpret(graph, {"x": bits})["y"], [-1.5, 2.0, -0.25])


@pytest.mark.parametrize(
    ("dtype", "x", "expected"),
    [
        ("f32", [1.0, np.nan, -0.0, 2.0, 0.0, np.nan], [1, 5, 3, 0, 2, 4]),
        ("i64", [0, -(2**63), 5, 2**63 - 1, 5], [3, 2, 4, 0, 1]),
        ("u8", [0, 3, 255, 3], [2, 1, 3, 0]),
        ("bool", [False, True, False, True], [1, 3, 0, 2]),
    ],
)
def test_the_largest_come_first(dtype: str, x: list[float], expected: list[int]) -> None:
    graph, array = Graph(), np.array(x, DTYPES[dtype].numpy)
    graph.add_input("x", TensorType(dtype, array.shape))
    ordered = graph.add("sort", ("x",), {"axis": 0, "descending": True})
    best = graph.add("topk", ("x",), {"axis": 0, "k": 3, "largest": True})
    graph.outputs = [ordered.outputs[1], best.outputs[1]]
    graph.output_names = ["ordered", "best"]
    got = interpret(graph, {"x": array})
    np.testing.assert_array_equal(got["ordered"], expected)
    np.testing.assert_array_equal(got["best"], expected[:3])


def test_casts_to_8_bit_floats_round() -> None:
    """Their grid is part of what a model says, as that of integers is."""
    graph = Graph()
    x = graph.add_input("x", TensorType("f32", (5,)))
    codes = graph.add("cast", (x,), {"dtype": "f8e4m3fn"}).output
    graph.outputs, graph.output_names = [codes], ["y"]
    given = np.array([1.0, 1.05, -1.07, 2**-11, np.nan], np.float32)
    np.testing.assert_array_equal(interpret(graph, {"x": given})["y"], [1, 1, -1.125, 0, np.nan])


def test_extremes_of_no_numbers() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType("f32", (2, 0)))
    for op in ("reduce_max", "reduce_min", "logsumexp"):
        graph.outputs.append(graph.add(op, (x,), {"axes": (1,), "keepdims": False}).output)
        graph.output_names.append(op)
    got = interpret(graph, {"x": np.zeros((2, 0), np.float32)})
    assert [array.tolist() for array in got.values()] == [
        [-np.inf] * 2,
        [np.inf] * 2,
        [-np.inf] * 2,
    ]


def test_attributes_may_name_symbols() -> None:
    graph = Graph(symbols={"seq": (1, None)})
    graph.add_input("x", TensorType("i64", (2 * SEQ + 1,)))
    places = graph.add("iota", (), {"size": SEQ, "start": SEQ, "step": 2, "dtype": "i64"})
    graph.outputs, graph.output_names = [places.output], ["places"]
    got = interpret(graph, {"x": np.zeros(7, np.int64)})
    np.testing.assert_array_equal(got["places"], [3, 5, 7])


@pytest.mark.parametrize("shape", [(2, 7), (2, 7, 4)])
def test_a_shape_that_does_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="input `x`"):
        interpret(_linear_graph(), {"x": np.zeros(shape, np.float32)})


def test_a_missing_input() -> None:
    with pytest.raises(InputError, match="no value for input `x`"):
        interpret(_linear_graph(), {})


def test_sizes_that_contradict_each_other() -> None:
    graph = Graph(symbols={"seq": (1, None)})
    graph.add_input("x", TensorType("f32", (SEQ,)))
    graph.add_input("y", TensorType("f32", (SEQ + 1,)))
    with pytest.raises(InputError, match=r"size 0 of input `y` is 3"):
        bind_symbols(graph, {"x": (3,), "y": (3,)})


def test_an_opaque_node() -> None:
    graph = Graph()
    kind = TensorType("f32", (2,))
    x = graph.add_input("x", kind)
    graph.outputs = [graph.add("aten.mystery.default", (x,), types=(kind,)).output]
    graph.output_names = ["y"]
    with pytest.raises(UnsupportedError, match=r"aten\.mystery\.default"):
        interpret(graph, {"x": np.zeros(2)})
