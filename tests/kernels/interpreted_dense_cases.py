"""Triton kernels of float products against their references, under Triton's interpreter.

Run by `test_triton.py` in a process of its own, as `interpreted_row_cases.py` is.
"""

from __future__ import annotations

import pytest
from dense_problems import Dense, linear, linear_problems, make
from interpreted_gemm_cases import Interpreted

from fusec import symbolic


def check(problem: Dense, answer: float = 1.0) -> None:
    made = make(problem)
    made.check(Interpreted(made).run(), answer)


@pytest.mark.parametrize("problem", linear_problems("gfx950"), ids=str)
def test_linear(problem: Dense) -> None:
    check(problem)


@pytest.mark.parametrize("problem", linear_problems("sm_90")[::3], ids=str)
def test_linear_of_nvidia(problem: Dense) -> None:
    check(problem)


@pytest.mark.parametrize("rows", [1, 65, 513])
def test_rows_known_at_run_time_only(rows: int) -> None:
    problem = linear("gfx950", "bf16", ("rows",), 72, 1056, bias=True, sizes={"rows": rows})
    made = make(problem)
    interpreted = Interpreted(made)
    grids = [
        [symbolic.evaluate(size, made.sizes) for size in launch.grid]
        for launch in interpreted.launches()
    ]
    assert sum(0 not in grid for grid in grids) == (1 if rows > 512 else 2)
    made.check(interpreted.run())


def test_a_doubled_answer_fails() -> None:
    problem = linear_problems("gfx950")[4]
    check(problem)
    with pytest.raises(AssertionError, match="off by"):
        check(problem, answer=2.0)
