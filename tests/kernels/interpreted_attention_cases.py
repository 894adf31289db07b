"""Triton attention against its reference, under Triton's interpreter.

Run by `test_triton.py` in a process of its own, as `interpreted_row_cases.py` is.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from attention_problems import FILL, Made, Problem, make, strided
from mended_interpreter import mend
from row_problems import TORCH

from fusec import symbolic
from fusec.dtypes import DTYPES
from fusec.kernels.launch import Launch, Storage, TritonSource, dense_strides
from fusec.symbolic import Dim

mend()


class Interpreted:
    """A problem, and the scratch of its launches."""

    def __init__(self, made: Made) -> None:
        self.made = made
        self.memory = dict(made.memory)

    def launches(self) -> tuple[Launch, ...]:
        """What runs."""
        return self.made.launches(self._scratch)

    def run(self) -> torch.Tensor:
        """The memory of the result after all launches."""
        for launch in self.launches():
            self._run(launch)
        return self.memory[self.made.result.buffer]

    def grids(self) -> list[list[int]]:
        """Work groups of each launch."""
        sizes = self.made.problem.sizes
        return [[symbolic.evaluate(size, sizes) for size in each.grid] for each in self.launches()]

    def _run(self, launch: Launch) -> None:
        source, sizes = launch.code, self.made.problem.sizes
        assert isinstance(source, TritonSource)
        grid = tuple(symbolic.evaluate(size, sizes) for size in launch.grid)
        if 0 in grid:
            return
        values: list[Any] = [self._pointer(storage) for storage in launch.operands]
        for param in launch.params:
            number = param if isinstance(param, float) else symbolic.evaluate(param, sizes)
            values.append(number)
        names = [name for name, _ in source.signature]
        given = {**dict(zip(names, values, strict=True)), **dict(source.constants)}
        function = getattr(importlib.import_module(source.module), source.function)
        assert [name for name in function.arg_names if name in names] == names
        assert set(function.arg_names) == set(given)
        with np.errstate(over="ignore"):  # of what a mask hides by the least number
            function[grid](**given)

    def _pointer(self, storage: Storage) -> torch.Tensor:
        begin = symbolic.evaluate(storage.byte_offset, self.made.problem.sizes)
        return self.memory[storage.buffer][begin:].view(TORCH.get(storage.dtype, torch.uint8))

    def _scratch(self, dtype: str, shape: tuple[Dim, ...]) -> Storage:
        buffer = max(self.memory) + 1
        elements = symbolic.evaluate(symbolic.product(shape), self.made.problem.sizes)
        self.memory[buffer] = torch.full(
            (elements * DTYPES[dtype].itemsize,), FILL, dtype=torch.uint8
        )
        return Storage(buffer, dtype, shape, dense_strides(shape))


def check(problem: Problem, answer: float = 1.0) -> None:
    made = make(problem)
    made.check(Interpreted(made).run(), answer)


SIZES = [
    Problem(queries=queries, keys=keys, causal=causal, heads=heads, kv_heads=kv_heads, depth=depth)
    for queries, keys, causal, heads, kv_heads, depth in (
        (1, 1, True, 2, 2, 12),
        (1, 33, True, 3, 1, 16),
        (1, 70, False, 2, 1, 64),
        (5, 1, True, 3, 1, 12),
        (5, 70, True, 6, 2, 80),
        (33, 5, True, 2, 1, 16),
        (33, 33, True, 3, 3, 12),
        (33, 70, True, 2, 1, 80),
        (70, 33, False, 2, 2, 16),
        (70, 70, True, 3, 1, 64),
        (133, 300, True, 2, 1, 16),
        (150, 150, True, 2, 2, 80),
    )
]

OPTIONS = [
    Problem(queries=70, keys=70, causal=True, window=9),
    Problem(queries=200, keys=200, causal=True, window=40, heads=1, layout="merged"),
    Problem(queries=150, keys=150, window=17, heads=1),
    Problem(queries=200, keys=200, causal=True, chunk=75, heads=1),
    Problem(queries=150, keys=150, causal=True, chunk=64, heads=3, layout="merged"),
    Problem(queries=45, keys=45, causal=True, chunk=1),
    Problem(queries=45, keys=45, causal=True, chunk=45),
    Problem(queries=100, keys=290, causal=True, chunk=90, heads=2),
    Problem(queries=150, keys=150, chunk=70, heads=1),
    Problem(queries=33, keys=200, chunk=40, padding=True, batch=2),
    Problem(queries=70, keys=9, chunk=7),
    Problem(queries=70, keys=9, chunk=500),
    Problem(queries=70, keys=9, causal=True, chunk=7),
    Problem(queries=70, keys=70, causal=True, chunk=33, mask="f32", sinks="f32"),
    Problem(queries=70, keys=70, causal=True, chunk=33, padding=True, batch=2, dtype="bf16"),
    Problem(queries=5, keys=300, causal=True, chunk=128, sinks="f32", heads=6, kv_heads=2),
    Problem(queries=70, keys=70, causal=True, softcap=5.0),
    Problem(queries=5, keys=300, causal=True, window=128, sinks="f32", heads=6, kv_heads=2),
    Problem(queries=70, keys=70, causal=True, window=1),
    Problem(queries=33, keys=33, window=0),
    Problem(sinks="f32", causal=True, queries=70, keys=33, heads=6, kv_heads=3),
    Problem(sinks="f32", window=0),
    Problem(sinks="f32", mask="f32", softcap=3.0),
    Problem(mask="bool", mask_shape=(2, 1, 35, 70), batch=2, queries=35, keys=70),
    Problem(mask="bool", causal=True, window=9, queries=70, keys=70, heads=3),
    Problem(mask="f32", mask_shape=(1, 2, 1, 40), queries=6, keys=40),
    Problem(mask="f32", mask_shape=(33, 70), keys=70, batch=2, padding=True),
    Problem(mask="f32", least=True, queries=35, keys=70),
    Problem(mask="f32", causal=True, queries=200, keys=200, heads=1),
    Problem(padding=True, batch=3, causal=True, queries=45, keys=45, layout="merged"),
    Problem(padding=True, batch=2, queries=3, keys=70, layout="dense"),
    Problem(padding=True, batch=2, keys=150, sinks="f32"),
]

HEADS = [
    Problem(depth=192, value_depth=128, causal=True, kv_heads=2),
    Problem(depth=192, value_depth=128, causal=True, queries=1, keys=70, kv_heads=2),
    Problem(depth=24, value_depth=40, causal=True),
    Problem(depth=96, causal=True, layout="merged"),
    Problem(depth=256, causal=True, heads=4, layout="dense"),
    Problem(depth=512, causal=True, heads=2, kv_heads=1),
    Problem(depth=288, value_depth=512, causal=True, queries=1, keys=70, kv_heads=2),
    Problem(depth=16, heads=40, queries=2, keys=33, causal=True),
]

DIVIDED = [
    Problem(named=True, queries=1, keys=400, causal=True, heads=4, kv_heads=2),
    Problem(named=True, queries=3, keys=5, causal=True, heads=3, batch=2, sinks="f32"),
    Problem(named=True, queries=2, keys=300, padding=True, batch=2, layout="dense"),
    Problem(named=True, queries=16, keys=300, causal=True, window=140, sinks="f32", heads=1),
    Problem(named=True, queries=5, keys=258, causal=True, chunk=128, heads=4, kv_heads=2),
    Problem(named=True, queries=1, keys=257, causal=True, chunk=128, sinks="f32"),
    Problem(named=True, queries=3, keys=300, chunk=110, padding=True, batch=2),
    Problem(named=True, queries=40, keys=300, causal=True, chunk=70),
    Problem(named=True, queries=40, keys=7, chunk=3),
    Problem(named=True, queries=2, keys=300, mask="f32", least=True),
    Problem(named=True, queries=4, keys=300, mask="f32", sinks="f32", depth=24, value_depth=40),
    Problem(named=True, queries=1, keys=300, causal=True, depth=192, value_depth=128, dtype="bf16"),
    Problem(named=True, queries=9, keys=3, causal=True),
    Problem(named=True, queries=17, keys=130, causal=True),
    Problem(named=True, causal=True, target="sm_90"),
    Problem(queries=4, keys=0, sinks="f32"),
]

NARROW = [
    Problem(dtype=dtype, target=target, causal=True, mask=mask, sinks=dtype, depth=80, keys=70)
    for dtype in ("bf16", "f16")
    for target, mask in (("gfx950", ""), ("gfx942", "f32"), ("sm_90", dtype))
]


@pytest.mark.parametrize("problem", [*SIZES, *OPTIONS, *HEADS, *NARROW, *DIVIDED], ids=str)
def test_attention(problem: Problem) -> None:
    check(problem)


def test_keys_are_divided_where_queries_are_few() -> None:
    for queries, runs in ((1, [1, 1, 0]), (16, [1, 1, 0]), (17, [0, 0, 1])):
        made = make(Problem(named=True, queries=queries, keys=300, depth=16, causal=True))
        assert [int(0 not in grid) for grid in Interpreted(made).grids()] == runs


@pytest.mark.filterwarnings("ignore:All-NaN slice", "ignore:invalid value")
@pytest.mark.parametrize("queries", [3, 33])
def test_large_scores_and_numbers_that_are_none(queries: int) -> None:
    made = make(Problem(named=True, queries=queries, keys=300, heads=1))
    q, k, v = (strided(made.memory[each.buffer], each, made.problem.sizes) for each in made.inputs)
    q.fill_(60.0)
    q[0, 0, 1, 3] = float("nan")
    k.zero_()
    k[0, 0, 133] = 60.0  # a score of thousands
    v[0, 0, 133] = 7.0
    written = strided(Interpreted(made).run(), made.result, made.problem.sizes)
    assert (written[0, 0, [0, 2]] == 7.0).all()
    assert written[0, 0, 1].isnan().all()


def test_a_doubled_answer_fails() -> None:
    for problem in (Problem(causal=True), Problem(named=True, queries=1, keys=300, dtype="bf16")):
        check(problem)
        with pytest.raises(AssertionError, match="off by"):
            check(problem, answer=2.0)
