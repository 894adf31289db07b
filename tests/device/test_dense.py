"""Triton kernels of float products, on the GPU: the interpreted cases, and large ones."""

from __future__ import annotations

import pytest
from dense_problems import (
    Dense,
    Held,
    check,
    conv_problems,
    epilogue_problems,
    grouped,
    grouped_problems,
    late_linear,
    linear,
    linear_problems,
    make,
    matmul,
    matmul_problems,
)
from gemm_problems import Bytes, Made

from fusec import symbolic
from fusec.kernels.launch import Call, Storage
from fusec.kernels.registry import choose
from fusec.symbolic import Dim

pytestmark = pytest.mark.gpu("sm_90")


def run(made: Made) -> tuple[Bytes, int]:
    """The memory of the result after all launches of the record that is chosen, and the error."""
    import torch
    from launcher import FILL, Scratch
    from launcher import run as launch_once

    kernel = choose(made.graph, made.node, made.target).kernel
    assert kernel is not None
    memory = {each.storage.buffer: torch.from_numpy(each.memory).cuda() for each in made.operands}
    memory[made.result.buffer] = torch.full(
        (made.result_bytes,), FILL, dtype=torch.uint8, device="cuda"
    )
    error = Storage(made.result.buffer + 1, "i64", (1,), (1,))
    memory[error.buffer] = torch.zeros(1, dtype=torch.int64, device="cuda")
    scratch = Scratch(memory)

    def allocate(dtype: str, shape: tuple[Dim, ...]) -> Storage:
        return scratch(dtype, tuple(symbolic.evaluate(dim, made.sizes) for dim in shape))

    inputs = tuple(operand.storage for operand in made.operands)
    call = Call(made.graph, made.node, made.target, inputs, (made.result,), allocate, lambda: error)
    for launch in kernel.launches(call):
        launch_once(launch, memory, made.sizes)
    result: Bytes = memory[made.result.buffer].cpu().numpy()
    return result, int(memory[error.buffer].item())


def check_on_gpu(problem: Dense) -> None:
    made = make(problem)
    result, error = run(made)
    check(made, result)
    assert error == 0


LARGE = [
    linear("sm_90", "bf16", (1,), 6144, 4096, bias=True),
    linear("sm_90", "f16", (300,), 2880, 2880, bias=True),
    linear("sm_90", "bf16", (1030,), 1536, 7168),
    linear("sm_90", "f32", (130,), 512, 2048),
    linear("sm_90", "bf16", (2,), 151936, 256),
    matmul("sm_90", "bf16", Held((4, 16, 300, 128)), Held((4, 16, 128, 512))),
]


@pytest.mark.parametrize("problem", [*linear_problems("sm_90"), *LARGE], ids=str)
def test_linear_and_large_products(problem: Dense) -> None:
    check_on_gpu(problem)


@pytest.mark.parametrize("rows", [1, 64, 65, 512, 1000])
def test_rows_known_at_run_time_only(rows: int) -> None:
    check_on_gpu(linear("sm_90", "bf16", ("rows",), 1000, 2880, bias=True, sizes={"rows": rows}))


@pytest.mark.parametrize("problem", matmul_problems("sm_90"), ids=str)
def test_matmul(problem: Dense) -> None:
    check_on_gpu(problem)


@pytest.mark.parametrize("dtype", ["f64", "i64", "i32"])
def test_matmul_of_other_dtypes(dtype: str) -> None:
    whole = tuple(range(-30, 30))
    a, b = Held((2, 5, 6), values=whole, order=(0, 2, 1)), Held((6, 10), values=whole)
    check_on_gpu(matmul("sm_90", dtype, a, b))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_linear_with_a_weight_of_late_size(dtype: str) -> None:
    check_on_gpu(late_linear("sm_90", dtype))


@pytest.mark.parametrize("problem", epilogue_problems("sm_90"), ids=str)
def test_what_follows_a_linear(problem: Dense) -> None:
    check_on_gpu(problem)


@pytest.mark.parametrize("problem", grouped_problems("sm_90"), ids=str)
def test_grouped_mm(problem: Dense) -> None:
    check_on_gpu(problem)


def test_stretches_that_are_none() -> None:
    _, error = run(make(grouped("sm_90", "bf16", 8, 16, 16, (2, 3, 9))))
    assert (error >> 32, error & 0xFFFFFFFF) == (8, 9)


@pytest.mark.parametrize("problem", conv_problems("sm_90"), ids=str)
def test_conv(problem: Dense) -> None:
    check_on_gpu(problem)


def test_a_doubled_answer_fails() -> None:
    made = make(linear_problems("sm_90")[4])
    result, _ = run(made)
    check(made, result)
    with pytest.raises(AssertionError, match="off by"):
        check(made, result, answer=2.0)
