"""Rotations and norms against the references of their operations, under Triton's interpreter.

Run by `test_triton.py` in a process of its own, as `interpreted_row_cases.py` is.
"""

from __future__ import annotations

import secrets

import pytest
from interpreted_row_cases import interpret
from mended_interpreter import mend
from rope_problems import norms, query_key_rotations, ropes
from row_problems import Problem, solve

from fusec.target import target_named

mend()

# What a GPU computes with infinities, numpy warns of.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

PROBLEMS = [*ropes(), *query_key_rotations(), *norms()]
ONE_EACH = {problem.op: problem for problem in PROBLEMS}


def check(problem: Problem, answer: float = 1.0) -> None:
    solve(problem, interpret, target_named("gfx950"), secrets.randbits(32), answer)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_kernels(problem: Problem) -> None:
    check(problem)


@pytest.mark.parametrize("op", ONE_EACH)
def test_a_doubled_answer_fails(op: str) -> None:
    with pytest.raises(AssertionError):
        check(ONE_EACH[op], answer=2.0)
