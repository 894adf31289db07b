"""Whole models of transformers, compiled for GPUs and run on the emulated device, against PyTorch.

What runs is the program that a GPU would run: the same launches with the same arguments on the same
plan of memory, each of them checked against its code object.  Shapes are other than the traced one:
a batch of one, sequences that are no multiple of any block, longer than a chunk and every window.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
import torch
from gpu_nodes import Watched
from models import build
from numpy.typing import NDArray
from reference import Arrays, Floats, eager, images, largest_error, tokens

from fusec.runtime import Model
from fusec.runtime.driver import KernelLaunch

FLOAT32_TOLERANCE = 1e-4
"""Of the largest result."""

BFLOAT16_RATIO = 1.5
"""How much further from the exact answer than eager bfloat16 a result may be."""

LAUNCH_TOLERANCE = 2.0**-6
"""How far a bfloat16 value may be from what its node means, relative to the largest element."""

ROUTED = ("qwen3_moe", "qwen3_next", "kimi_linear", "deepseek_v3", "gpt_oss", "mixtral")
DENSE = ("llama", "qwen3", "gemma3", "phi3", "bert", "modernbert", "vit")
ALWAYS = ("llama", "qwen3_next", "deepseek_v3")
"""Those of the default set: between them they have nearly every kind of kernel."""


Compile = Callable[[str, str, str], Watched]


@pytest.fixture(scope="module")
def compiled_model(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Build the sample called `name` in a dtype of torch and compile it for a target, once."""

    @cache
    def make(name: str, dtype: str, target: str) -> Watched:
        work = tmp_path_factory.mktemp(f"{name}-{dtype}-{target}")
        return Watched(build(name, work / name, dtype), work / "model.fusec", target)

    return make


def inputs(name: str, seed: int = 0) -> list[Arrays]:
    """Two shapes other than the traced one."""
    if name == "vit":
        return [images(1, seed=seed), images(3, seed=seed)]
    return [tokens(1, 37, seed=seed), tokens(2, 67, seed=seed)]


def seeds(name: str) -> range:
    """How many inputs say how exact a model is.

    Where a router flips for an early token, all later ones of a sequence may differ; an image
    classifier has one small result.
    """
    return range(6 if name in ROUTED else 3 if name == "vit" else 1)


def unless(names: tuple[str, ...], chosen: tuple[str, ...]) -> list[object]:
    """`names` as parameters, those that are not `chosen` only in the full set."""
    slow = pytest.mark.slow
    return [name if name in chosen else pytest.param(name, marks=slow) for name in names]


class Loaded(Protocol):
    """A model folder, and what was compiled of it, on some device."""

    @property
    def folder(self) -> Path:
        """What PyTorch reads."""

    @property
    def model(self) -> Model:
        """What runs."""


def check_bfloat16(name: str, made: Loaded, chosen: range) -> None:
    """No further from exact than eager; for models with a router, at most of the places.

    A router that is torn between two experts may go either way, and what comes of it is as far from
    exact as it can be: a mean says nothing then but how often that happened.
    """
    typical = np.median if name in ROUTED else np.mean
    squares: dict[str, list[list[Floats]]] = {}
    for seed in chosen:
        for given in inputs(name, seed):
            exact = eager(made.folder, given, torch.float64)
            rounded = eager(made.folder, given, torch.bfloat16)
            got = made.model.run(dict(given))
            assert set(got) == set(exact)
            for output, values in exact.items():
                assert got[output].shape == values.shape
                pair = [square_errors(results[output], values) for results in (got, rounded)]
                squares.setdefault(output, []).append(pair)
    for pairs in squares.values():
        ours, theirs = (typical(np.concatenate(errors)) for errors in zip(*pairs, strict=True))
        assert ours <= BFLOAT16_RATIO**2 * theirs


def square_errors(got: NDArray[np.generic], wanted: Floats) -> Floats:
    """The mean square of the difference at each place, relative to that of what is wanted."""
    difference = np.asarray(got, dtype=np.float64) - wanted
    errors: Floats = np.mean(difference**2, axis=-1).reshape(-1) / np.mean(wanted**2)
    return errors


def check_launches(made: Watched, given: Arrays) -> None:
    """Every value is what its node makes of the values before it."""
    found = made.differences(given)
    assert len(found) > 20
    assert not [each for each in found if not each.largest <= LAUNCH_TOLERANCE]


@pytest.mark.parametrize("name", unless((*DENSE, *ROUTED), ("llama", "vit")))
def test_bfloat16_is_no_further_from_exact_than_pytorch(name: str, compiled_model: Compile) -> None:
    made = compiled_model(name, "bfloat16", "gfx950")
    check_bfloat16(name, made, seeds(name))


@pytest.mark.parametrize("name", unless((*DENSE, *ROUTED), ALWAYS))
def test_every_launch_computes_what_its_node_means(name: str, compiled_model: Compile) -> None:
    made = compiled_model(name, "bfloat16", "gfx950")
    (target,) = made.compiled.document["targets"]
    assert target["residual"] == []
    check_launches(made, inputs(name)[1])


def test_a_wrong_answer_fails(compiled_model: Compile) -> None:
    """One launch of a whole model leaves half of its result as it was."""
    made = compiled_model("llama", "bfloat16", "gfx950")
    run, done = made.device.launch, count()

    def halved(launch: KernelLaunch, stream: int) -> None:
        begin, end = launch.spans[-1]
        before = np.zeros((end - begin) // 2, np.uint8)
        made.device.download(before, begin, stream)
        run(launch, stream)
        if next(done) == 7:
            made.device.upload(begin, before, stream)

    made.device.launch = halved  # type: ignore[method-assign]
    with pytest.raises(AssertionError):
        check_launches(made, tokens(1, 5))
    made.device.launch = run  # type: ignore[method-assign]


@pytest.mark.parametrize("name", unless((*DENSE, *ROUTED), ("qwen3_moe",)))
def test_float32_is_what_pytorch_computes(name: str, compiled_model: Compile) -> None:
    made = compiled_model(name, "float32", "gfx950")
    for given in inputs(name):
        wanted = eager(made.folder, given, torch.float32)
        got = made.model.run(dict(given))
        for output, values in wanted.items():
            assert got[output].shape == values.shape
            assert largest_error(got[output], values) <= FLOAT32_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gfx942", "sm_90"])
@pytest.mark.parametrize("name", ["llama", "qwen3_next"])
def test_every_launch_on_other_gpus(name: str, target: str, compiled_model: Compile) -> None:
    check_launches(compiled_model(name, "bfloat16", target), inputs(name)[1])
