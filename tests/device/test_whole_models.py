"""Whole models of transformers on the GPU, against PyTorch: what runs emulated elsewhere, for real.

The cases are those of `tests/models/test_gpu_models.py`, all of them, and the replays of a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import build
from reference import eager, largest_error, tokens
from test_gpu_models import (
    DENSE,
    FLOAT32_TOLERANCE,
    ROUTED,
    check_bfloat16,
    inputs,
    seeds,
)

import fusec
from fusec.runtime import Model

pytestmark = pytest.mark.gpu("sm_90")

MODELS = (*DENSE, *ROUTED)


@dataclass(frozen=True)
class OnGpu:
    """A model folder, and what was compiled of it, on the GPU."""

    folder: Path
    document: Any
    model: Model


Compile = Callable[[str, str], OnGpu]


@pytest.fixture(scope="module")
def on_gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compile]:
    """Build the sample called `name` in a dtype of torch, compile it, and load it, once."""
    with ExitStack() as loaded:

        @cache
        def make(name: str, dtype: str) -> OnGpu:
            work = tmp_path_factory.mktemp(f"{name}-{dtype}")
            folder = build(name, work / name, dtype)
            compiled = fusec.compile(folder, work / "model.fusec", target="sm_90")
            model = loaded.enter_context(fusec.load(compiled.path, "cuda:0"))
            return OnGpu(folder, compiled.document, model)

        yield make


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_left_to_the_host(name: str, on_gpu: Compile) -> None:
    (target,) = on_gpu(name, "bfloat16").document["targets"]
    assert target["residual"] == []


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_no_further_from_exact_than_pytorch(name: str, on_gpu: Compile) -> None:
    check_bfloat16(name, on_gpu(name, "bfloat16"), seeds(name))


@pytest.mark.parametrize("name", MODELS)
def test_float32_is_what_pytorch_computes(name: str, on_gpu: Compile) -> None:
    made = on_gpu(name, "float32")
    for given in inputs(name):
        wanted = eager(made.folder, given, torch.float32)
        got = made.model.run(dict(given))
        for output, values in wanted.items():
            assert got[output].shape == values.shape
            assert largest_error(got[output], values) <= FLOAT32_TOLERANCE
            assert largest_error(2 * got[output], values) > FLOAT32_TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_a_replay_gives_what_the_first_run_gave(name: str, on_gpu: Compile) -> None:
    made = on_gpu(name, "bfloat16")
    for given in inputs(name, seed=5):
        first, *others = (made.model.run(dict(given)) for _ in range(4))
        for other in others:
            for output, values in first.items():
                np.testing.assert_array_equal(other[output], values)


@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3"])
def test_steps_of_one_token(name: str, on_gpu: Compile) -> None:
    made = on_gpu(name, "float32")
    for batch in (1, 8):
        given = tokens(batch, 1, seed=batch)
        wanted = eager(made.folder, given, torch.float32)
        got = made.model.run(dict(given))
        for output, values in wanted.items():
            assert largest_error(got[output], values) <= FLOAT32_TOLERANCE
