"""Kernels that walk along sequences on a GPU, against their references.

The problems are those of the interpreter, and others at the sizes of models.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from launcher import SM_90, run
from recurrent_problems import (
    CONV_PROBLEMS,
    DELTA_PROBLEMS,
    SCAN_PROBLEMS,
    SOLVE_PROBLEMS,
    Memory,
    Problem,
    conv_problem,
    delta_problem,
    solve,
    solve_problem,
)

from fusec.kernels.launch import Launch

pytestmark = pytest.mark.gpu("sm_90")

LARGE = [
    conv_problem(8192, 1000, 4, layout="slice"),
    conv_problem(8192, 1000, 4, layout="steps", bias=True),
    delta_problem(1000, 128, 128, key_heads=2, heads=4),
    delta_problem(1000, 128, 128, heads=2, per_channel=True),
    delta_problem(1000, 128, 128, heads=2, gate=20.0, per_channel=True, dtype="f16"),
    delta_problem(257, 96, 192, heads=2),
    delta_problem(130, 128, 128, heads=2, dtype="f32"),
    solve_problem(64, 128, (40,), unit=True),
    solve_problem(1000, 70, (2,), upper=True),
]


def run_on_gpu(launch: Launch, memory: Memory, sizes: Mapping[str, int]) -> None:
    """Launch with a copy of the memory on the GPU, and bring back what is there then."""
    there = {buffer: tensor.cuda() for buffer, tensor in memory.items()}
    run(launch, there, sizes)
    torch.cuda.synchronize()
    for buffer, tensor in there.items():
        memory[buffer].copy_(tensor)


PROBLEMS = [*CONV_PROBLEMS, *DELTA_PROBLEMS, *SCAN_PROBLEMS, *SOLVE_PROBLEMS]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_recurrent_kernels(problem: Problem) -> None:
    solve(problem, run_on_gpu, SM_90)


@pytest.mark.parametrize("problem", LARGE, ids=str)
def test_sizes_of_models(problem: Problem) -> None:
    solve(problem, run_on_gpu, SM_90)


@pytest.mark.parametrize(
    "problem", [CONV_PROBLEMS[1], DELTA_PROBLEMS[0], SOLVE_PROBLEMS[2]], ids=str
)
def test_a_doubled_answer_fails(problem: Problem) -> None:
    with pytest.raises(AssertionError, match="off by"):
        solve(problem, run_on_gpu, SM_90, answer=2.0)
