"""Kernels that read or write where indices say, under Triton's interpreter.

Run by `test_triton.py` in a process of its own: the interpreter has to be chosen before a kernel is
imported.
"""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from index_problems import (
    Answer,
    Given,
    Memory,
    Problem,
    check_answer,
    indices,
    order_of,
    random,
    solve,
    wanted,
    wide,
)
from mended_interpreter import mend

from fusec import symbolic
from fusec.ir.types import Attr
from fusec.kernels.launch import Launch, TritonSource
from fusec.target import target_named

mend()

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

POINTERS = {
    "*fp64": torch.float64,
    "*fp32": torch.float32,
    "*bf16": torch.bfloat16,
    "*fp16": torch.float16,
    "*i64": torch.int64,
    "*i32": torch.int32,
    "*i16": torch.int16,
    "*i8": torch.int8,
    "*u8": torch.uint8,
}

MOVED = ("f32", "bf16", "f16", "f64", "i64", "i8", "bool", "f8e4m3fn")
INTEGERS = ("i64", "i32", "i16", "i8")
ORDERED = ("f32", "bf16", "f16", "f64", "i64", "i32", "i16", "i8", "u8", "bool")


def interpret(launch: Launch, memory: Memory) -> None:
    """Run each program of a launch, one after the other."""
    source = launch.code
    assert isinstance(source, TritonSource)
    function = getattr(importlib.import_module(source.module), source.function)
    given: dict[str, torch.Tensor | float] = {}
    numbers = iter(launch.params)
    places = iter(launch.operands)
    for name, kind in source.signature:
        if kind.startswith("*"):
            storage = next(places)
            begin = symbolic.evaluate(storage.byte_offset, {})
            bytes_of = memory[storage.buffer][begin:]
            size = torch.empty(0, dtype=POINTERS[kind]).element_size()
            given[name] = bytes_of[: len(bytes_of) // size * size].view(POINTERS[kind])
        else:
            number = next(numbers)
            given[name] = number if isinstance(number, float) else symbolic.evaluate(number, {})
    grid = tuple(symbolic.evaluate(size, {}) for size in launch.grid)
    function[grid](**given, **dict(source.constants))


def answer(problem: Problem, target: str = "gfx950") -> Answer:
    return solve(problem, interpret, target_named(target))


def check_equal(problem: Problem, target: str = "gfx950") -> None:
    check_answer(problem, answer(problem, target))


# --- take, index, gather ------------------------------------------------------------------------


TAKES = [
    ((9, 40), (2, 5), 0),
    ((4, 9, 3), (7,), 1),
    ((4, 9, 1), (2, 3, 2), 1),
    ((300,), (17, 3), 0),
    ((3, 5), (4,), 1),
    ((11, 1030), (3,), 0),
    ((2, 3, 4), (0,), 1),
    ((0, 3, 4), (2,), 1),
    ((5, 0), (2,), 0),
]


@pytest.mark.parametrize("dtype", MOVED)
@pytest.mark.parametrize(("shape", "positions", "axis"), TAKES)
def test_take(dtype: str, shape: tuple[int, ...], positions: tuple[int, ...], axis: int) -> None:
    given = indices(positions, shape[axis], apart=dtype == "bf16")
    check_equal(Problem("take", (Given(random(shape, dtype), dtype), given), {"axis": axis}))


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("target", ["gfx950", "sm_90"])
def test_dtypes_of_indices(dtype: str, target: str) -> None:
    x = Given(random((9, 48), "bf16"), "bf16")
    check_equal(Problem("take", (x, indices((6,), 9, dtype)), {"axis": 0}), target)


def test_index_with_several_operands() -> None:
    x = Given(random((3, 5, 7, 2), "f64"), "f64")
    picked = (indices((4, 1), 5), indices((6,), 7, "i32"))
    check_equal(Problem("index", (x, *picked), {"axes": (1, 2)}))
    three = (indices((2, 1, 1, 3), 3), indices((4, 1, 3), 5, apart=True), indices((5, 1), 7))
    check_equal(Problem("index", (x, *three), {"axes": (0, 1, 2)}))


@pytest.mark.parametrize("dtype", MOVED)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("apart", [False, True])
def test_gather(dtype: str, axis: int, apart: bool) -> None:
    shape = (4, 5, 6)
    x = Given(random(shape, dtype), dtype, apart)
    given = indices((3, 2, 5), shape[axis], apart=apart)
    check_equal(Problem("gather", (x, given), {"axis": axis}, apart))


def test_gather_of_many_and_of_none() -> None:
    x = Given(random((70, 40), "f32"), "f32")
    check_equal(Problem("gather", (x, indices((70, 33), 40)), {"axis": 1}))
    check_equal(Problem("gather", (x, indices((0, 33), 40)), {"axis": 1}))


WRONG = [7, -8, 2**31 - 1, -(2**31)]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("op", ["take", "index", "gather"])
def test_an_index_out_of_range_is_reported(op: str, wrong: int) -> None:
    x = Given(random((7, 5), "f32"), "f32")
    picked = indices((4, 5) if op == "gather" else (4,), 7)
    picked.values[2] = wrong
    attrs = {"axes": (0,)} if op == "index" else {"axis": 0}
    given = answer(Problem(op, (x, picked), attrs))
    assert given.wrong_index == (wrong, 7)
    assert np.isnan(given.results[0][2]).all(), "something was read"
    assert not np.isnan(given.results[0][:2]).any()


@pytest.mark.parametrize("op", ["gather", "scatter"])
def test_an_index_longer_than_what_it_picks_from_is_reported(op: str) -> None:
    x, index = Given(random((4, 9), "f32"), "f32"), indices((5, 3), 9)
    source = Given(random((5, 3), "f32"), "f32")
    given = answer(Problem(op, (x, index, source)[: 2 + (op == "scatter")], {"axis": 1}))
    assert given.wrong_index == (4, 4)
    assert np.isnan(given.results[0]).all(), "something was written"


# --- scatter, index_put -------------------------------------------------------------------------


def reducing(axis: int, reduce: str | None) -> dict[str, Attr]:
    return {"axis": axis} if reduce is None else {"axis": axis, "reduce": reduce}


SCATTERED = [
    *((dtype, None) for dtype in MOVED),
    *((dtype, "add") for dtype in ORDERED if dtype != "bool"),
    *(("bf16", reduce) for reduce in ("multiply", "amax", "amin")),
    *(("i64", reduce) for reduce in ("multiply", "amax", "amin")),
    ("bool", "amax"),
    ("bool", "amin"),
]


@pytest.mark.parametrize(("dtype", "reduce"), SCATTERED)
def test_scatter(dtype: str, reduce: str | None) -> None:
    for axis, shape, apart in ((1, (3, 4, 2), True), (0, (5, 4, 3), False), (-1, (3, 4, 2), False)):
        x, source = (Given(random(size, dtype), dtype) for size in ((5, 4, 3), shape))
        given = indices(shape, x.values.shape[axis], apart=apart)
        source = replace(source, apart=apart)
        attrs: dict[str, Attr] = (
            {"axis": axis} if reduce is None else {"axis": axis, "reduce": reduce}
        )
        check_equal(Problem("scatter", (x, given, source), attrs))


@pytest.mark.parametrize("reduce", [None, "add", "amin"])
def test_scatter_of_many(reduce: str | None) -> None:
    """Keys that are put in order first: one line for every row, and one that all columns share."""
    x, source = Given(random((3, 40), "f32"), "f32"), Given(random((3, 130), "f32", 1), "f32")
    check_equal(Problem("scatter", (x, indices((3, 130), 40), source), reducing(1, reduce)))
    x, source = Given(random((9, 7), "i64"), "i64"), Given(random((150, 5), "i64", 1), "i64")
    shared = indices((150, 1), 9)
    shared = Given(np.broadcast_to(shared.values, (150, 5)), "i64")
    check_equal(Problem("scatter", (x, shared, source), reducing(0, reduce)))


@pytest.mark.parametrize("dtype", [*ORDERED, "f8e4m3fn"])
@pytest.mark.parametrize("accumulate", [False, True])
def test_index_put(dtype: str, accumulate: bool) -> None:
    if dtype in ("bool", "f8e4m3fn") and accumulate:
        return
    x = Given(random((2, 5, 6, 3), dtype), dtype)
    picked = (indices((8,), 5), indices((8,), 6, "i32"))
    attrs: dict[str, Attr] = {"axes": (1, 2), "accumulate": accumulate}
    for shape in ((8, 1), (2, 8, 3)) if dtype in ("bf16", "i8") else ((2, 1, 3),):
        values = Given(random(shape, dtype, 5), dtype, apart=len(shape) > 1)
        check_equal(Problem("index_put", (x, values, *picked), attrs))


@pytest.mark.parametrize("accumulate", [False, True])
def test_index_put_of_many(accumulate: bool) -> None:
    attrs: dict[str, Attr] = {"axes": (0,), "accumulate": accumulate}
    for dtype, count, rows, inner in (
        ("bf16", 100, 9, 33),
        ("i64", 200, 200, 1),
        ("f32", 70, 3, 0),
    ):
        x = Given(random((rows, inner), dtype), dtype)
        values = Given(random((count, inner), dtype, 1), dtype)
        check_equal(Problem("index_put", (x, values, indices((count,), rows)), attrs))
    x, values = Given(random((4, 3), "f32"), "f32"), Given(random((0, 3), "f32"), "f32")
    check_equal(Problem("index_put", (x, values, indices((0,), 4)), attrs))


def test_nan_wins() -> None:
    x = Given(np.asarray([1, np.nan, 2, np.nan, 5], np.float32), "f32")
    source = Given(np.asarray([np.nan, 3, 4, np.nan], np.float32), "f32")
    index = Given(np.asarray([0, 1, 2, 3], np.int64), "i64")
    for reduce in ("amax", "amin"):
        problem = Problem("scatter", (x, index, source), {"axis": 0, "reduce": reduce})
        check_equal(problem)


@pytest.mark.parametrize("count", [4, 100])
@pytest.mark.parametrize("op", ["scatter", "index_put"])
def test_writing_out_of_range_is_reported(op: str, count: int) -> None:
    """Those that are in range are still written."""
    x, values = Given(random((7, 3), "f32"), "f32"), Given(random((count, 3), "f32", 2), "f32")
    picked = indices((count, 3) if op == "scatter" else (count,), 7)
    picked.values[2] = -9
    scatter = (x, picked, values)
    problem = (
        Problem(op, scatter, {"axis": 0})
        if op == "scatter"
        else Problem(op, (x, values, picked), {"axes": (0,), "accumulate": False})
    )
    given = answer(problem)
    assert given.wrong_index == (-9, 7)
    kept = [place for place in range(count) if place != 2]
    want = x.values.copy()
    for place in kept:
        for column in range(3):
            row = picked.values[place, column] if op == "scatter" else picked.values[place]
            want[row, column] = values.values[place, column]
    np.testing.assert_array_equal(given.results[0], want)


# --- sort, topk ---------------------------------------------------------------------------------


def check_order(problem: Problem, descending: bool, count: int, axis: int = -1) -> None:
    """The order of a stable sort by `order_of`."""
    (x,) = problem.operands
    values, order = answer(problem).results
    want = np.take(order_of(wide(x.values, x.dtype), descending, axis), range(count), axis)
    np.testing.assert_array_equal(order, want)
    np.testing.assert_array_equal(values, np.take_along_axis(x.values, want, axis))


@pytest.mark.parametrize("dtype", ORDERED)
@pytest.mark.parametrize("descending", [False, True])
def test_sort(dtype: str, descending: bool) -> None:
    shapes: list[tuple[tuple[int, ...], int, bool]] = [((2, 70), 1, False)]
    if dtype in ("bf16", "i64"):
        shapes = [((3, 5), -1, False), ((2, 5, 3), 1, True), ((130,), 0, False)]
    for shape, axis, apart in shapes:
        x = Given(random(shape, dtype), dtype, apart)
        problem = Problem("sort", (x,), {"axis": axis, "descending": descending}, apart)
        check_order(problem, descending, shape[axis], axis)


@pytest.mark.parametrize("dtype", ["f32", "i64"])
@pytest.mark.parametrize("largest", [False, True])
def test_topk(dtype: str, largest: bool) -> None:
    for shape, axis, k in (((5, 33), -1, 4), ((7, 3, 2), 0, 7), ((2, 0), 0, 1), ((4, 6), 1, 0)):
        x = Given(random(shape, dtype), dtype, apart=axis == 0)
        problem = Problem("topk", (x,), {"axis": axis, "k": k, "largest": largest}, axis == 0)
        check_order(problem, largest, k, axis)


@pytest.mark.parametrize("descending", [False, True])
def test_order_of_extreme_values(descending: bool) -> None:
    extreme = [np.inf, -0.0, np.nan, 0.0, -np.inf, 1e-45, -1e-45, np.nan, 3e38, -3e38, 0.0, 1.0]
    x = np.asarray(extreme, np.float32)
    x.view(np.uint32)[2] |= 0x80000007  # a NaN with a sign and a payload
    problem = Problem("sort", (Given(x, "f32"),), {"axis": 0, "descending": descending})
    check_order(problem, descending, len(x))
    wide_x = Given(np.asarray([*extreme, 5e-324], np.float64), "f64")
    problem = Problem("sort", (wide_x,), {"axis": 0, "descending": descending})
    check_order(problem, descending, len(extreme) + 1)
    ends = np.asarray([0, 2**63 - 1, -(2**63), 2**40, -1, 2**32 + 1, 2**32], np.int64)
    problem = Problem("sort", (Given(ends, "i64"),), {"axis": 0, "descending": descending})
    check_order(problem, descending, len(ends))


def test_order_of_long_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of 64, the last of them short; the longest row that is one run is 128."""
    monkeypatch.setattr("fusec.kernels.sort.triton.RUN", 64)
    for dtype, descending in (("f32", True), ("i64", False), ("bf16", False)):
        x = Given(random((2, 150), dtype), dtype)
        problem = Problem("sort", (x,), {"axis": 1, "descending": descending})
        check_order(problem, descending, 150)
    x = Given(random((150, 2), "f32"), "f32", apart=True)
    check_order(Problem("topk", (x,), {"axis": 0, "k": 5, "largest": True}, True), True, 5, 0)


# --- histogram ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16", "f64", "i64", "i32", "u8", "i8"])
@pytest.mark.parametrize("count", [1300, 7, 0])
def test_histogram(dtype: str, count: int) -> None:
    for bins, low, high in ((9, 0.0, 9.0), (6, -0.3, 2.9)):
        x = Given(random((count,), dtype, count), dtype)
        attrs: dict[str, Attr] = {"bins": bins, "low": low, "high": high}
        check_equal(Problem("histogram", (x,), attrs))


def test_what_belongs_to_no_bin() -> None:
    x = Given(np.asarray([np.nan, np.inf, -np.inf, 4.0, 0.0, -0.0, 4.0001, 1.0], np.float32), "f32")
    (counts,) = answer(Problem("histogram", (x,), {"bins": 4, "low": 0.0, "high": 4.0})).results
    np.testing.assert_array_equal(counts, [2, 1, 0, 1])


@pytest.mark.parametrize("op", ["take", "index_put"])
def test_a_doubled_answer_fails(op: str) -> None:
    x, row = Given(random((5, 4), "f32", 3), "f32"), Given(np.asarray([1, 1]), "i64")
    problem = {
        "take": Problem("take", (x, row), {"axis": 0}),
        "index_put": Problem(
            op, (x, replace(x, values=x.values[:2]), row), {"axes": (0,), "accumulate": True}
        ),
    }[op]
    (result,) = answer(problem).results
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(2 * result, wanted(problem)[0])
