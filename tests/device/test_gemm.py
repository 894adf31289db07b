"""Triton kernels that multiply matrices, on the GPU: the cases of `interpreted_gemm_cases`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from gemm_problems import (
    FN,
    Made,
    Problem,
    dequant_problems,
    every_code,
    fp8_problems,
    make,
    make_rows,
    mx_problems,
)

from fusec import symbolic
from fusec.formats import mx_scaling
from fusec.kernels.launch import Call, Storage
from fusec.kernels.registry import Kernel, choose, kernels
from fusec.symbolic import Dim

pytestmark = pytest.mark.gpu("sm_90")


def run(made: Made, kernel: Kernel) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The memory of the result after all launches of `kernel`."""
    import torch
    from launcher import FILL, Scratch
    from launcher import run as launch_once

    memory = {each.storage.buffer: torch.from_numpy(each.memory).cuda() for each in made.operands}
    memory[made.result.buffer] = torch.full(
        (made.result_bytes,), FILL, dtype=torch.uint8, device="cuda"
    )
    scratch = Scratch(memory)

    def allocate(dtype: str, shape: tuple[Dim, ...]) -> Storage:
        return scratch(dtype, tuple(symbolic.evaluate(dim, made.sizes) for dim in shape))

    inputs = tuple(operand.storage for operand in made.operands)
    call = Call(made.graph, made.node, made.target, inputs, (made.result,), allocate)
    for launch in kernel.launches(call):
        launch_once(launch, memory, made.sizes)
    result = memory[made.result.buffer].cpu().numpy()
    return np.asarray(result, dtype=np.uint8)


def chosen(made: Made) -> Kernel:
    kernel = choose(made.graph, made.node, made.target).kernel
    assert kernel is not None
    return kernel


def scaled(made: Made) -> Kernel:
    """The kernel for gfx950: Triton gives other GPUs the same product by bf16."""
    return next(each for each in kernels()[made.node.op] if each.name.endswith("triton_scaled"))


@pytest.mark.parametrize("problem", fp8_problems("sm_90"), ids=str)
def test_fp8_linear(problem: Problem) -> None:
    made = make(problem)
    made.check(run(made, chosen(made)))


@pytest.mark.parametrize("problem", dequant_problems("sm_90"), ids=str)
def test_mxfp4_dequantised(problem: Problem) -> None:
    made = make(problem)
    made.check(run(made, chosen(made)))


@pytest.mark.parametrize("problem", mx_problems("gfx950"), ids=str)
def test_scaled_products(problem: Problem) -> None:
    made = make(problem)
    made.check(run(made, scaled(made)))


def test_every_code_is_exact() -> None:
    made = every_code("sm_90")
    made.check(run(made, chosen(made)))


@pytest.mark.parametrize("rows", [1, 64, 65, 512, 1000])
def test_rows_known_at_run_time_only(rows: int) -> None:
    problem = Problem("mxfp4_linear", "sm_90", (-1,), 1000, 2880, dtype="f32", bias="f32")
    made = make_rows(problem, (rows,), np.random.default_rng(rows))
    made.check(run(made, chosen(made)))


@pytest.mark.parametrize("rows", [3, 129])
@pytest.mark.parametrize("scaling", [None, mx_scaling(FN)], ids=["floats", "codes"])
def test_padded_equals_unpadded(scaling: Any, rows: int) -> None:
    problem = Problem("mxfp4_linear", "sm_90", (rows,), 40, 352, scaling, padded=(256, 512))
    if scaling is not None:
        problem = dataclasses.replace(problem, target="gfx950")
    padded, plain = (
        run(made, scaled(made) if scaling is not None else chosen(made))
        for made in (make(problem), make(dataclasses.replace(problem, padded=None)))
    )
    np.testing.assert_array_equal(padded, plain)


def test_a_doubled_answer_fails() -> None:
    made = make(dequant_problems("sm_90")[3])
    result = run(made, chosen(made))
    made.check(result)
    with pytest.raises(AssertionError, match="off by"):
        made.check(result, answer=2.0)
