"""Row kernels against the references of their operations, under Triton's interpreter.

Run by `test_triton.py` in a process of its own: the interpreter has to be chosen before a kernel is
imported.
"""

from __future__ import annotations

import importlib
import secrets

import pytest
import torch
from mended_interpreter import mend
from row_problems import Memory, Problem, solve
from row_tables import FN, FNUZ, large, tables

from fusec import symbolic
from fusec.kernels.launch import Launch, TritonSource
from fusec.target import target_named

mend()

# What a GPU computes with infinities, numpy warns of.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

TABLES = tables(FN)


def interpret(launch: Launch, memory: Memory) -> None:
    """Run each program of a launch, one after the other."""
    source = launch.code
    assert isinstance(source, TritonSource)
    function = getattr(importlib.import_module(source.module), source.function)
    pointers: list[torch.Tensor | float] = [
        memory[storage.buffer][symbolic.evaluate(storage.offset, {}) :]
        for storage in launch.operands
    ]
    numbers = [
        param if isinstance(param, float) else symbolic.evaluate(param, {})
        for param in launch.params
    ]
    names = [name for name, _ in source.signature]
    given = dict(zip(names, [*pointers, *numbers], strict=True))
    grid = tuple(symbolic.evaluate(size, {}) for size in launch.grid)
    function[grid](**given, **dict(source.constants))


def check(problem: Problem, target: str = "gfx950", answer: float = 1.0) -> None:
    solve(problem, interpret, target_named(target), secrets.randbits(32), answer)


@pytest.mark.parametrize(
    "problem", [problem for table in TABLES.values() for problem in table], ids=str
)
def test_row_kernels(problem: Problem) -> None:
    check(problem)


FNUZ_PROBLEMS = [
    problem
    for table in tables(FNUZ).values()
    for problem in table
    if problem.attrs.get("quant_dtype") == FNUZ
]


@pytest.mark.parametrize("problem", FNUZ_PROBLEMS[::6], ids=str)
def test_fnuz(problem: Problem) -> None:
    check(problem, "gfx942")


@pytest.mark.slow
@pytest.mark.parametrize("problem", [*large(FN), *FNUZ_PROBLEMS], ids=str)
def test_large(problem: Problem) -> None:
    dtype = problem.attrs.get("quant_dtype")
    check(problem, "gfx942" if dtype == FNUZ else "gfx950")


@pytest.mark.parametrize("op", TABLES)
def test_a_doubled_answer_fails(op: str) -> None:
    problem = TABLES[op][0]
    with pytest.raises(AssertionError):
        check(problem, answer=2.0)
