"""Triton attention on the GPU: the cases of `interpreted_attention_cases`, and larger ones."""

from __future__ import annotations

import dataclasses

import pytest
from attention_problems import FILL, Made, Problem, make, strided

from fusec import symbolic
from fusec.kernels.launch import Storage
from fusec.symbolic import Dim

pytestmark = pytest.mark.gpu("sm_90")


def run(made: Made) -> None:
    """Put what all launches write into the memory of the result."""
    import torch
    from launcher import Scratch
    from launcher import run as launch_once

    sizes = made.problem.sizes
    memory = {buffer: each.cuda() for buffer, each in made.memory.items()}
    scratch = Scratch(memory)

    def allocate(dtype: str, shape: tuple[Dim, ...]) -> Storage:
        return scratch(dtype, tuple(symbolic.evaluate(dim, sizes) for dim in shape))

    for launch in made.launches(allocate):
        if 0 not in [symbolic.evaluate(size, sizes) for size in launch.grid]:
            launch_once(launch, memory, sizes)
    torch.cuda.synchronize()
    made.memory = {buffer: memory[buffer].cpu() for buffer in made.memory}


def check(problem: Problem, answer: float = 1.0) -> None:
    made = make(dataclasses.replace(problem, target="sm_90"))
    assert (made.memory[made.result.buffer] == FILL).all()
    run(made)
    made.check(made.memory[made.result.buffer], answer)


MODELS = [
    Problem(heads=8, kv_heads=2, queries=300, keys=300, depth=128, causal=True, layout="merged"),
    Problem(heads=16, kv_heads=2, queries=700, keys=700, depth=64, window=128, sinks="bf16"),
    Problem(heads=10, kv_heads=2, queries=700, keys=700, depth=128, causal=True, chunk=200),
    Problem(heads=4, kv_heads=4, queries=260, keys=260, depth=192, value_depth=128, causal=True),
    Problem(heads=8, kv_heads=1, queries=130, keys=300, depth=256, causal=True, softcap=50.0),
    Problem(heads=12, kv_heads=12, queries=77, keys=77, depth=64, padding=True, batch=3),
    Problem(heads=4, queries=100, keys=333, depth=80, causal=True, layout="dense"),
    Problem(heads=4, queries=100, keys=100, depth=96, mask="bool", batch=2),
    Problem(heads=4, queries=100, keys=129, depth=192, mask="f32", least=True),
    Problem(heads=2, queries=5, keys=0, depth=64),
]

DECODING = [
    Problem(heads=heads, kv_heads=kv, queries=queries, keys=keys, depth=depth, causal=True)
    for heads, kv, depth in ((8, 2, 128), (64, 8, 64), (3, 1, 256))
    for queries, keys in ((1, 1), (1, 1001), (5, 333), (16, 1000), (17, 1000))
]


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("problem", MODELS, ids=str)
def test_models(problem: Problem, dtype: str) -> None:
    sinks = dtype if problem.sinks else ""
    check(dataclasses.replace(problem, dtype=dtype, sinks=sinks))


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize("problem", DECODING, ids=str)
def test_decoding(problem: Problem, dtype: str) -> None:
    check(dataclasses.replace(problem, dtype=dtype, named=True, batch=2))


@pytest.mark.parametrize("queries", [3, 133])
def test_large_scores_and_numbers_that_are_none(queries: int) -> None:
    problem = Problem(named=True, queries=queries, keys=300, heads=1, target="sm_90", depth=64)
    made = make(problem)
    q, k, v = (strided(made.memory[each.buffer], each, problem.sizes) for each in made.inputs)
    q.fill_(60.0)
    q[0, 0, 1, 3] = float("nan")
    k.zero_()
    k[0, 0, 133] = 60.0
    v[0, 0, 133] = 7.0
    run(made)
    written = strided(made.memory[made.result.buffer], made.result, problem.sizes)
    assert (written[0, 0, [0, 2]] == 7.0).all()
    assert written[0, 0, 1].isnan().all()


def test_the_same_bits_every_time() -> None:
    problem = Problem(named=True, heads=8, queries=1, keys=1021, depth=128, target="sm_90")
    first, second = make(problem), make(problem)
    run(first)
    run(second)
    buffer = first.result.buffer
    assert (first.memory[buffer] == second.memory[buffer]).all()


def test_a_doubled_answer_fails() -> None:
    check(MODELS[0])
    with pytest.raises(AssertionError, match="off by"):
        check(MODELS[0], answer=2.0)
