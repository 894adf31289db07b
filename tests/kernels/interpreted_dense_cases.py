"""Triton kernels of float products against their references, under Triton's interpreter.

Run by `test_triton.py` in a process of its own, as `interpreted_row_cases.py` is.
"""

from __future__ import annotations

import numpy as np
import pytest
from dense_problems import (
    Dense,
    Held,
    check,
    conv_problems,
    epilogue_problems,
    extreme,
    grouped,
    grouped_problems,
    late_linear,
    linear,
    linear_problems,
    make,
    matmul,
    matmul_problems,
)
from interpreted_gemm_cases import Interpreted

from fusec import symbolic


def run(problem: Dense, answer: float = 1.0) -> None:
    made = make(problem)
    check(made, Interpreted(made).run(), answer)


@pytest.mark.parametrize("problem", linear_problems("gfx950"), ids=str)
def test_linear(problem: Dense) -> None:
    run(problem)


@pytest.mark.parametrize("problem", linear_problems("sm_90")[::3], ids=str)
def test_linear_of_nvidia(problem: Dense) -> None:
    run(problem)


@pytest.mark.parametrize("rows", [1, 65, 513])
def test_rows_known_at_run_time_only(rows: int) -> None:
    problem = linear("gfx950", "bf16", ("rows",), 24, 1056, bias=True, sizes={"rows": rows})
    made = make(problem)
    interpreted = Interpreted(made)
    grids = [
        [symbolic.evaluate(size, made.sizes) for size in launch.grid]
        for launch in interpreted.launches()
    ]
    assert sum(0 not in grid for grid in grids) == (1 if rows > 512 else 2)
    check(made, interpreted.run())


@pytest.mark.parametrize("problem", epilogue_problems("gfx950"), ids=str)
def test_what_follows_a_linear(problem: Dense) -> None:
    with np.errstate(over="ignore"):  # the interpreter warns where exp is infinite
        run(problem)


@pytest.mark.parametrize("problem", matmul_problems("gfx950"), ids=str)
def test_matmul(problem: Dense) -> None:
    run(problem)


@pytest.mark.parametrize("problem", matmul_problems("sm_90")[::4], ids=str)
def test_matmul_of_nvidia(problem: Dense) -> None:
    run(problem)


@pytest.mark.parametrize("dtype", ["f64", "i64", "i32"])
def test_matmul_of_other_dtypes(dtype: str) -> None:
    whole = tuple(range(-30, 30))
    a, b = Held((2, 5, 6), values=whole, order=(0, 2, 1)), Held((6, 10), values=whole)
    run(matmul("gfx942", dtype, a, b))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_linear_with_a_weight_of_late_size(dtype: str) -> None:
    run(late_linear("gfx950", dtype))


@pytest.mark.parametrize("problem", grouped_problems("gfx950"), ids=str)
def test_grouped_mm(problem: Dense) -> None:
    run(problem)


@pytest.mark.parametrize(("ends", "wrong"), [((2, 1, 3), 1), ((2, 3, 9), 9), ((-4, 3, 8), -4)])
def test_stretches_that_are_none(ends: tuple[int, ...], wrong: int) -> None:
    made = make(grouped("gfx950", "bf16", 8, 16, 16, ends))
    interpreted = Interpreted(made)
    interpreted.run()
    word = int(interpreted.error[0])
    assert (word >> 32, word & 0xFFFFFFFF) == (8, wrong & 0xFFFFFFFF)


@pytest.mark.parametrize("problem", conv_problems("gfx950"), ids=str)
def test_conv(problem: Dense) -> None:
    run(problem)


EXTREME = [
    linear("gfx950", "bf16", (17,), 33, 95, x_gap=3, bias=True),
    linear("gfx950", "f32", (3,), 40, 1056),
    matmul("gfx950", "bf16", Held((2, 9, 40), order=(0, 2, 1), gap=2), Held((40, 33))),
    grouped("gfx950", "f32", 12, 24, 33, (5, 12)),
]


@pytest.mark.parametrize("problem", EXTREME, ids=str)
def test_extreme_values_stay_in_their_rows(problem: Dense) -> None:
    made = extreme(problem)
    special = ~np.isfinite(made.wanted)
    assert special.any() and not special.all()
    with np.errstate(invalid="ignore", over="ignore"):  # of the interpreter
        check(made, Interpreted(made).run())


def test_a_doubled_answer_fails() -> None:
    problem = linear_problems("gfx950")[4]
    run(problem)
    with pytest.raises(AssertionError, match="off by"):
        run(problem, answer=2.0)
