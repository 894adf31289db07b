"""Row kernels on a GPU, against the references of their operations: the interpreter's problems."""

from __future__ import annotations

import secrets

import pytest
import torch
from launcher import SM_90, run
from row_problems import Memory, Problem, solve
from row_tables import FN, large, tables

from fusec.kernels.launch import Launch

pytestmark = pytest.mark.gpu("sm_90")

TABLES = tables(FN)


def run_on_gpu(launch: Launch, memory: Memory) -> None:
    """Launch with a copy of the memory on the GPU, and bring back what is there then."""
    there = {buffer: tensor.cuda() for buffer, tensor in memory.items()}
    run(launch, there)
    torch.cuda.synchronize()
    for buffer, tensor in there.items():
        memory[buffer].copy_(tensor)


@pytest.mark.parametrize("op", TABLES)
def test_row_kernels(op: str) -> None:
    for problem in TABLES[op]:
        solve(problem, run_on_gpu, SM_90, secrets.randbits(32))


@pytest.mark.parametrize("problem", large(FN), ids=str)
def test_many_rows(problem: Problem) -> None:
    solve(problem, run_on_gpu, SM_90, secrets.randbits(32))


@pytest.mark.parametrize("op", TABLES)
def test_a_doubled_answer_fails(op: str) -> None:
    with pytest.raises(AssertionError):
        solve(TABLES[op][0], run_on_gpu, SM_90, secrets.randbits(32), answer=2.0)
