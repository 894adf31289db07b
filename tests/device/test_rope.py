"""Rotations and norms on a GPU, against the references of their operations."""

from __future__ import annotations

import secrets

import pytest
from launcher import SM_90
from rope_problems import norms, query_key_rotations, ropes
from row_problems import solve
from test_row_kernels import run_on_gpu

pytestmark = pytest.mark.gpu("sm_90")

PROBLEMS = [*ropes(), *query_key_rotations(), *norms()]
ONE_EACH = {problem.op: problem for problem in PROBLEMS}


@pytest.mark.parametrize("op", ONE_EACH)
def test_kernels(op: str) -> None:
    for problem in PROBLEMS:
        if problem.op == op:
            solve(problem, run_on_gpu, SM_90, secrets.randbits(32))


@pytest.mark.parametrize("op", ONE_EACH)
def test_a_doubled_answer_fails(op: str) -> None:
    with pytest.raises(AssertionError):
        solve(ONE_EACH[op], run_on_gpu, SM_90, secrets.randbits(32), answer=2.0)
