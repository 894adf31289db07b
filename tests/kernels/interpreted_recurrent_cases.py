"""Kernels that walk along sequences against their references, under Triton's interpreter.

Run by `test_triton.py` in a process of its own, as `interpreted_row_cases.py` is.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import pytest
from mended_interpreter import mend
from recurrent_problems import (
    CONV_PROBLEMS,
    DELTA_PROBLEMS,
    SCAN_PROBLEMS,
    SOLVE_PROBLEMS,
    Memory,
    Problem,
    solve,
)

from fusec import symbolic
from fusec.kernels.launch import Launch, TritonSource
from fusec.target import target_named

mend()

GFX950 = target_named("gfx950")


def interpret(launch: Launch, memory: Memory, sizes: Mapping[str, int]) -> None:
    """Run each program of a launch, one after the other."""
    source = launch.code
    assert isinstance(source, TritonSource)
    function = getattr(importlib.import_module(source.module), source.function)
    values: list[Any] = [
        memory[storage.buffer][symbolic.evaluate(storage.offset, sizes) :]
        for storage in launch.operands
    ]
    values += [
        param if isinstance(param, float) else symbolic.evaluate(param, sizes)
        for param in launch.params
    ]
    names = [name for name, _ in source.signature]
    assert [name for name in function.arg_names if name in names] == names
    given = {**dict(zip(names, values, strict=True)), **dict(source.constants)}
    assert set(given) == set(function.arg_names)
    function[tuple(symbolic.evaluate(size, sizes) for size in launch.grid)](**given)


@pytest.mark.parametrize("problem", CONV_PROBLEMS, ids=str)
def test_causal_conv1d(problem: Problem) -> None:
    solve(problem, interpret, GFX950)


@pytest.mark.parametrize("problem", DELTA_PROBLEMS, ids=str)
def test_gated_delta_rule(problem: Problem) -> None:
    solve(problem, interpret, GFX950)


@pytest.mark.parametrize("problem", DELTA_PROBLEMS[::5], ids=str)
def test_gated_delta_rule_in_chunks_of_32(problem: Problem) -> None:
    solve(problem, interpret, target_named("sm_90"))


@pytest.mark.parametrize("problem", SCAN_PROBLEMS, ids=str)
def test_selective_scan(problem: Problem) -> None:
    solve(problem, interpret, GFX950)


@pytest.mark.parametrize("problem", SOLVE_PROBLEMS, ids=str)
def test_solve_triangular(problem: Problem) -> None:
    solve(problem, interpret, GFX950)


@pytest.mark.parametrize(
    "problem", [CONV_PROBLEMS[1], DELTA_PROBLEMS[0], SOLVE_PROBLEMS[2]], ids=str
)
def test_a_doubled_answer_fails(problem: Problem) -> None:
    with pytest.raises(AssertionError, match="off by"):
        solve(problem, interpret, GFX950, answer=2.0)
