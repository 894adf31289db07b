"""`rope` and `qk_norm_rope` on the CPU, in the problems that kernels on GPUs solve."""

from __future__ import annotations

import ctypes
import secrets
from collections.abc import Iterator
from dataclasses import replace

import cpu_library
import numpy as np
import pytest
import torch
from cpu_library import Module, bits
from rope_problems import qk_norm_rope, query_key_rotations, rope, ropes, style
from row_problems import Memory, Operand, Problem, solve

from fusec.kernels.launch import Launch
from fusec.symbolic import evaluate
from fusec.target import target_named

library = cpu_library.cpu_library("rope", "qk_norm_rope")
TARGET = target_named("x86-64-v3")


def whole_vectors() -> Iterator[Problem]:
    """Halves of one to three vectors of both lengths, and what is left over."""
    for half in (8, 16, 17, 31, 40):
        for name, order in (("half", False), ("interleaved", False), ("interleaved", True)):
            attrs = style(name, 2 * half, deinterleave=order)
            x = Operand((2, 3, 5, 2 * half + 9), "bf16")
            yield rope(x, attrs, Operand((1, 1, 5, half), "f32"))
            weights = (Operand(x.shape[-1:], "f32"), Operand(x.shape[-1:]))
            keys = Operand((2, 1, 5, 2 * half + 9))
            yield qk_norm_rope(x, keys, Operand((5, half)), attrs, *weights, offset=1)


PROBLEMS = [
    problem
    for problem in (*ropes(), *query_key_rotations(), *whole_vectors())
    if all(table.dtype in ("f32", problem.operands[0].dtype) for table in problem.operands[-2:])
]


def doubles(problem: Problem) -> Problem:
    return replace(
        problem, operands=tuple(replace(operand, dtype="f64") for operand in problem.operands)
    )


def check(library: Module, problem: Problem, answer: float = 1.0) -> None:
    def run(launch: Launch, memory: Memory) -> None:
        numbers = [
            bits(param) if isinstance(param, float) else evaluate(param, {})
            for param in launch.params
        ]
        places = [
            memory[storage.buffer].view(torch.uint8)[evaluate(storage.byte_offset, {}) :]
            for storage in launch.operands
        ]
        results = []
        for threads in (1, 2):
            library.threads(threads)
            found = library.call(launch.symbol, [place.numpy() for place in places], numbers)
            results.append([array.tobytes() for array in found])
        assert results[0] == results[1]
        for place, array in zip(places[-2:], found[-2:], strict=True):
            place.copy_(torch.from_numpy(array))

    solve(problem, run, TARGET, secrets.randbits(32), answer, provider="cpp")


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_rotations(library: Module, problem: Problem) -> None:
    check(library, problem)


@pytest.mark.parametrize("problem", [PROBLEMS[0], *query_key_rotations()], ids=str)
def test_doubles(library: Module, problem: Problem) -> None:
    check(library, doubles(problem))


@pytest.mark.parametrize("op", ["rope", "qk_norm_rope"])
def test_another_answer_fails(library: Module, op: str) -> None:
    problem = next(problem for problem in PROBLEMS if problem.op == op)
    with pytest.raises(AssertionError):
        check(library, problem, answer=2.0)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("deinterleave", [0, 1])
def test_results_may_lie_upon_operands(
    library: Module, interleaved: int, deinterleave: int
) -> None:
    rng = np.random.default_rng(interleaved)
    x, cos, sin = (rng.standard_normal((7, width), np.float32) for width in (70, 32, 32))
    rows, angles = [0, 0, 0, 70], [0, 0, 0, 32]
    params = [*[1, 1, 1, 7], *rows, *angles, *angles, *rows, 70, 64, interleaved, deinterleave]
    apart = library.call("fusec_rope_f32", [x, cos, sin, x], [*params, 1, 2])[-1]
    memories = [cpu_library.Memory(array) for array in (x, cos, sin)]
    addresses = [memories[i].address for i in (0, 1, 2, 0)]
    numbers = (ctypes.c_int64 * (len(params) + 2))(*params, 1, 2)
    library.library.fusec_rope_f32((ctypes.c_void_p * 4)(*addresses), numbers)
    assert memories[0].array.tobytes() == apart.tobytes()
