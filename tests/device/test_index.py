"""Kernels that read or write where indices say, on the GPU."""

from __future__ import annotations

import numpy as np
import pytest
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
    wide,
)
from launcher import SM_90
from launcher import run as launch_once

from fusec.ir.types import Attr
from fusec.kernels.launch import Launch

pytestmark = pytest.mark.gpu("sm_90")

ADDED: dict[str, Attr] = {"axes": (0,), "accumulate": True}


def run(launch: Launch, memory: Memory) -> None:
    """Launch once on the GPU, on a copy of the memory that comes back."""
    there = {buffer: held.cuda() for buffer, held in memory.items()}
    launch_once(launch, there)
    for buffer, held in there.items():
        memory[buffer].copy_(held)


def answer(problem: Problem) -> Answer:
    return solve(problem, run, SM_90)


def x_of(*shape: int, dtype: str = "bf16", apart: bool = False) -> Given:
    return Given(random(shape, dtype), dtype, apart)


PROBLEMS = [
    Problem("take", (x_of(999, 4096), indices((3, 70), 999)), {"axis": 0}),
    Problem("take", (x_of(99, 2880), indices((33,), 99, "i32", True)), {"axis": 0}),
    Problem("take", (x_of(5, 99, 3, dtype="i8"), indices((7, 9), 99)), {"axis": 1}),
    Problem(
        "index",
        (x_of(9, 300, dtype="bool"), indices((9, 1, 1), 9), indices((1, 7, 250), 300)),
        {"axes": (0, 1)},
    ),
    Problem(
        "gather", (x_of(70, 64, 5, apart=True), indices((70, 8, 5), 64, apart=True)), {"axis": 1}
    ),
    Problem("scatter", (x_of(999, 64), indices((999, 8), 64), x_of(999, 8)), {"axis": 1}),
    Problem(
        "scatter",
        (x_of(64, 33, dtype="f32"), indices((999, 33), 64), x_of(999, 33, dtype="f32")),
        {"axis": 0, "reduce": "amax"},
    ),
    Problem(
        "index_put",
        (x_of(999, 512, dtype="f32"), x_of(7992, 512, dtype="f32"), indices((7992,), 999)),
        ADDED,
    ),
    Problem("index_put", (x_of(99, 512), x_of(99, 512), indices((99,), 99)), ADDED),
    Problem(
        "index_put",
        (x_of(7992, dtype="i64"), x_of(7992, dtype="i64"), indices((7992,), 7992)),
        {**ADDED, "accumulate": False},
    ),
    Problem("histogram", (x_of(7992, dtype="f32"),), {"bins": 9, "low": -4.0, "high": 8.5}),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_results_are_those_of_the_reference(problem: Problem) -> None:
    given = answer(problem)
    check_answer(problem, given)
    assert answer(problem).results[0].tobytes() == given.results[0].tobytes()


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(("rows", "length"), [(300, 64), (7, 2050), (2, 70000)])
@pytest.mark.parametrize("dtype", ["bf16", "f32", "i64"])
def test_order(dtype: str, rows: int, length: int, descending: bool) -> None:
    x = x_of(rows, length, dtype=dtype)
    values, order = answer(Problem("sort", (x,), {"axis": 1, "descending": descending})).results
    want = order_of(wide(x.values, dtype), descending, 1)
    np.testing.assert_array_equal(order, want)
    np.testing.assert_array_equal(values, np.take_along_axis(x.values, want, 1))


@pytest.mark.parametrize("op", ["take", "gather"])
def test_an_index_out_of_range_is_reported(op: str) -> None:
    x = x_of(7, 64, dtype="f32")
    picked = indices((4, 64) if op == "gather" else (4,), 7)
    picked.values[2] = 2**31 - 1
    given = answer(Problem(op, (x, picked), {"axis": 0}))
    assert given.wrong_index == (2**31 - 1, 7)
    assert np.isnan(given.results[0][2]).all(), "something was read"
