"""Triton kernels that multiply matrices against their references, under Triton's interpreter.

Run by `test_triton.py` in a process of its own, as `interpreted_row_cases.py` is.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import numpy as np
import pytest
import torch
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
from mended_interpreter import mend
from row_problems import TORCH
from triton.runtime.interpreter import InterpreterBuilder

from fusec import symbolic
from fusec.dtypes import DTYPES
from fusec.formats import mx_scaling
from fusec.kernels.launch import Call, Launch, Storage, TritonSource, dense_strides
from fusec.kernels.registry import choose
from fusec.symbolic import Dim

mend()

HAS_SCALED = hasattr(InterpreterBuilder, "create_dot_scaled")

needs_newer = pytest.mark.skipif(
    not HAS_SCALED, reason="this interpreter has neither scaled products nor e4m3fnuz"
)


class Interpreted:
    """A problem and its memory, on which launches run."""

    def __init__(self, made: Made) -> None:
        self.made = made
        self.memory = {each.storage.buffer: each.memory.copy() for each in made.operands}
        self.memory[made.result.buffer] = np.full(made.result_bytes, 0xFF, dtype=np.uint8)
        self.error = np.zeros(1, dtype=np.int64)

    def launches(self) -> tuple[Launch, ...]:
        """What runs, by the record that is chosen."""
        made = self.made
        kernel = choose(made.graph, made.node, made.target).kernel
        assert kernel is not None
        inputs = tuple(operand.storage for operand in made.operands)
        call = Call(
            made.graph, made.node, made.target, inputs, (made.result,), self._scratch, self._error
        )
        return kernel.launches(call)

    def run(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The memory of the result after all launches."""
        for launch in self.launches():
            self._run(launch)
        return self.memory[self.made.result.buffer]

    def _run(self, launch: Launch) -> None:
        source = launch.code
        assert isinstance(source, TritonSource)
        grid = tuple(symbolic.evaluate(size, self.made.sizes) for size in launch.grid)
        if 0 in grid:
            return
        values: list[Any] = [self._pointer(storage) for storage in launch.operands]
        values += [
            symbolic.evaluate(param, self.made.sizes)
            for param in launch.params
            if not isinstance(param, float)
        ]
        names = [name for name, _ in source.signature]
        given = {**dict(zip(names, values, strict=True)), **dict(source.constants)}
        function = getattr(importlib.import_module(source.module), source.function)
        assert [name for name in function.arg_names if name in names] == names
        assert set(function.arg_names) == set(given)
        function[grid](**given)

    def _pointer(self, storage: Storage) -> torch.Tensor:
        begin = symbolic.evaluate(storage.byte_offset, self.made.sizes)
        memory = torch.from_numpy(self.memory[storage.buffer])
        return memory[begin:].view(TORCH[storage.dtype])

    def _error(self) -> Storage:
        buffer = max(self.memory) + 1
        self.memory[buffer] = self.error.view(np.uint8)
        return Storage(buffer, "i64", (1,), (1,))

    def _scratch(self, dtype: str, shape: tuple[Dim, ...]) -> Storage:
        buffer = max(self.memory) + 1
        elements = symbolic.evaluate(symbolic.product(shape), self.made.sizes)
        size = elements * DTYPES[dtype].itemsize
        self.memory[buffer] = np.full(size, 0xFF, dtype=np.uint8)
        return Storage(buffer, dtype, shape, dense_strides(shape))


def check(problem: Problem, answer: float = 1.0) -> None:
    made = make(problem)
    made.check(Interpreted(made).run(), answer)


@pytest.mark.parametrize("problem", fp8_problems("gfx950"), ids=str)
def test_fp8_linear(problem: Problem) -> None:
    check(problem)


@needs_newer
@pytest.mark.parametrize("problem", fp8_problems("gfx942")[::3], ids=str)
def test_fp8_linear_of_e4m3fnuz(problem: Problem) -> None:
    check(problem)


@needs_newer
@pytest.mark.parametrize("problem", mx_problems("gfx950"), ids=str)
def test_scaled_products(problem: Problem) -> None:
    check(problem)


@pytest.mark.parametrize(
    "problem", [*dequant_problems("gfx942"), *dequant_problems("sm_90")[4:]], ids=str
)
def test_mxfp4_dequantised(problem: Problem) -> None:
    check(problem)


def test_every_code_is_exact() -> None:
    made = every_code("gfx942")
    made.check(Interpreted(made).run())


@pytest.mark.parametrize(("rows", "tier"), [(1, 0), (64, 0), (65, 1), (512, 1), (513, 2)])
def test_rows_known_at_run_time_only(rows: int, tier: int) -> None:
    problem = Problem("mxfp4_linear", "gfx950", (-1,), 72, 1056, dtype="f32", bias="f32")
    made = make_rows(problem, (rows,), np.random.default_rng(rows))
    grids = [
        [symbolic.evaluate(size, made.sizes) for size in launch.grid]
        for launch in Interpreted(made).launches()
    ]
    few, add_few, some, add_some, many = [0 not in grid for grid in grids]
    assert [few, some, many] == [each == tier for each in range(3)]
    assert (add_few, add_some) == (few, some)
    if rows in (1, 65, 513):
        made.check(Interpreted(made).run())


def test_a_range_of_rows_decides_what_is_launched() -> None:
    problem = Problem("mxfp4_linear", "gfx950", (-1,), 72, 1056)
    counts = []
    for rows in ((1, 16), (1, 64), (65, 512), (600, None), (64, 65), (1, None)):
        made = make_rows(problem, (3,), np.random.default_rng(0))
        made.graph.symbols["rows"] = rows
        counts.append(len(Interpreted(made).launches()))
    assert counts == [2, 2, 2, 1, 4, 5]


PADDED = [
    *(Problem("mxfp4_linear", "gfx942", (m,), 40, 352, padded=(256, 512)) for m in (3, 129)),
    *(
        Problem("mxfp4_linear", "gfx950", (m,), 40, 352, mx_scaling(FN), padded=(256, 512))
        for m in (3, 129)
    ),
]


@pytest.mark.parametrize("problem", PADDED, ids=str)
def test_padded_equals_unpadded(problem: Problem) -> None:
    if problem.scaling is not None and not HAS_SCALED:
        pytest.skip("this interpreter has no scaled products")
    padded = Interpreted(make(problem)).run()
    plain = Interpreted(make(dataclasses.replace(problem, padded=None))).run()
    np.testing.assert_array_equal(padded, plain)


@pytest.mark.parametrize("target", ["gfx942", "gfx950"])
def test_a_doubled_answer_fails(target: str) -> None:
    problem = dequant_problems(target)[3]
    check(problem)
    with pytest.raises(AssertionError, match="off by"):
        check(problem, answer=2.0)
