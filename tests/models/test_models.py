"""Whole models of transformers, compiled for the CPU, against PyTorch.

Each has random weights and a small configuration, and is run at shapes other than the one it was
exported with.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import build
from reference import Arrays, eager, images, largest_error, rms_error, tokens

import fusec
from fusec.api import Compiled
from fusec.diagnostics import ArtifactError
from fusec.runtime import Model

CAUSAL = (
    "llama",
    "qwen3",
    "qwen3_moe",
    "qwen3_next",
    "kimi_linear",
    "deepseek_v3",
    "gpt_oss",
    "mixtral",
    "gemma3",
    "phi3",
    "llama4",
)
ENCODERS = ("bert", "modernbert", "vit")

FLOAT32_TOLERANCE = 1e-4
"""Of the largest logit."""

BFLOAT16_RATIO = 1.5
"""How much further from the exact answer than eager bfloat16 a result may be."""


@dataclass(frozen=True)
class CompiledModel:
    """A model folder, and the artifact that was made of it for this CPU."""

    folder: Path
    compiled: Compiled
    model: Model


Compile = Callable[[str, str], CompiledModel]


@pytest.fixture(scope="session")
def compiled_model(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Build and compile the sample called `name` in a dtype of torch, once."""

    @cache
    def make(name: str, dtype: str) -> CompiledModel:
        work = tmp_path_factory.mktemp(f"{name}-{dtype}")
        folder = build(name, work / name, dtype)
        compiled = fusec.compile(folder, work / "model.fusec", target="cpu")
        return CompiledModel(folder, compiled, fusec.load(compiled.path))

    return make


def inputs(name: str) -> list[Arrays]:
    """Sizes that are odd, one, longer than a chunk of 64, and longer than every window."""
    if name == "vit":
        return [images(1), images(3)]
    return [tokens(1, 1), tokens(3, 37), tokens(2, 130)]


@pytest.mark.parametrize("name", [*CAUSAL, *ENCODERS])
def test_float32_is_what_pytorch_computes(name: str, compiled_model: Compile) -> None:
    made = compiled_model(name, "float32")
    for given in inputs(name):
        wanted = eager(made.folder, given, torch.float32)
        got = made.model.run(dict(given))
        assert set(got) == set(wanted)
        for output, values in wanted.items():
            assert got[output].shape == values.shape
            assert largest_error(got[output], values) <= FLOAT32_TOLERANCE


@pytest.mark.parametrize("name", [*CAUSAL, *ENCODERS])
def test_bfloat16_is_no_further_from_exact_than_pytorch(name: str, compiled_model: Compile) -> None:
    """Over several inputs: a router that is torn between two experts may go either way in one."""
    made = compiled_model(name, "bfloat16")
    squares: dict[str, list[tuple[float, float]]] = {}
    for seed in range(4):
        given = images(4, seed=seed) if name == "vit" else tokens(3, 41, seed=seed)
        exact = eager(made.folder, given, torch.float64)
        rounded = eager(made.folder, given, torch.bfloat16)
        got = made.model.run(dict(given))
        for output, values in exact.items():
            pair = rms_error(got[output], values) ** 2, rms_error(rounded[output], values) ** 2
            squares.setdefault(output, []).append(pair)
    for pairs in squares.values():
        ours, theirs = np.sqrt(np.mean(pairs, axis=0))
        assert ours <= BFLOAT16_RATIO * theirs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CAUSAL)
def test_causal_models_leave_nothing_to_onnxruntime(
    name: str, dtype: str, compiled_model: Compile
) -> None:
    (target,) = compiled_model(name, dtype).compiled.document["targets"]
    assert target["residual"] == []


FUSIONS: dict[str, dict[str, int]] = {
    "llama": {
        "add_rms_norm": 6,
        "attention": 3,
        "silu_mul": 3,
        "rope": 6,
        "qk_rope": 3,
        "linear_glu": 3,
    },
    "qwen3": {"add_rms_norm": 6, "attention": 3, "silu_mul": 3, "qk_norm_rope": 3, "linear_glu": 3},
    "qwen3_moe": {
        "add_rms_norm": 6,
        "attention": 3,
        "silu_mul": 1,
        "moe": 2,
        "qk_norm_rope": 3,
        "linear_glu": 1,
    },
    "qwen3_next": {
        "add_rms_norm": 8,
        "attention": 1,
        "gated_delta_rule": 3,
        "gated_rms_norm": 3,
        "moe": 3,
        "silu_mul": 4,
        "qk_norm_rope": 1,
        "linear_glu": 4,
    },
    "kimi_linear": {
        "add_rms_norm": 10,
        "attention": 1,
        "gated_delta_rule": 4,
        "gated_rms_norm": 4,
        "moe": 4,
        "silu_mul": 5,
        "linear_glu": 5,
        "linear_epilogue": 4,
    },
    "deepseek_v3": {
        "add_rms_norm": 8,
        "attention": 4,
        "dual_rms_norm": 4,
        "moe": 3,
        "silu_mul": 4,
        "rope": 8,
        "qk_rope": 4,
        "linear_glu": 4,
        "linear_epilogue": 3,
    },
    "gpt_oss": {"add_rms_norm": 8, "attention": 4, "moe": 4, "rope": 8, "qk_rope": 4},
    "mixtral": {"add_rms_norm": 6, "attention": 3, "moe": 3, "rope": 6, "qk_rope": 3},
    "gemma3": {
        "add_rms_norm": 8,
        "attention": 4,
        "gelu_mul": 4,
        "qk_norm_rope": 4,
        "linear_glu": 4,
    },
    "phi3": {
        "add_rms_norm": 6,
        "attention": 3,
        "silu_mul": 3,
        "rope": 6,
        "qk_rope": 3,
        "linear_glu": 3,
    },
    "llama4": {
        "add_rms_norm": 8,
        "attention": 4,
        "qk_norm_rope": 3,
        "moe": 2,
        "silu_mul": 4,
        "linear_glu": 4,
        "linear_epilogue": 2,
    },
    "bert": {"attention": 3, "linear_epilogue": 9},
    "modernbert": {
        "attention": 4,
        "gelu_mul": 4,
        "rope": 8,
        "qk_rope": 4,
        "linear_glu": 4,
        "linear_epilogue": 8,
    },
    "vit": {"attention": 3, "linear_epilogue": 9},
}
"""What fires, by model; merged weights are looked at in the tests of their passes."""


def fired(document: Any) -> Counter[str]:
    """Fusions of the only target that fired."""
    (target,) = document["targets"]
    rows = [row for row in target["decisions"] if row["status"] == "fired"]
    return Counter(row["fusion"] for row in rows)


@pytest.mark.parametrize("name", FUSIONS)
def test_fusions_that_fire(name: str, compiled_model: Compile) -> None:
    document = compiled_model(name, "float32").compiled.document
    counts = fired(document)
    merged = {name: counts.pop(name) for name in ("merge_qkv", "merge_gate_up") if name in counts}
    assert counts == FUSIONS[name]
    assert all(merged.values())


def test_every_decision_names_a_site_of_the_model(compiled_model: Compile) -> None:
    made = compiled_model("qwen3_next", "float32")
    (target,) = made.compiled.document["targets"]
    sites = {(row["fusion"], row["site"]) for row in target["decisions"]}
    assert ("gated_rms_norm", "model.layers.0.linear_attn.norm") in sites
    assert ("attention", "model.layers.3.self_attn") in sites
    assert ("add_rms_norm", "model.norm") in sites


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "bert"])
def test_padding_is_left_out(name: str, tmp_path: Path, compiled_model: Compile) -> None:
    """With a mask, what counts is what PyTorch computes, whatever the padding holds."""
    folder = compiled_model(name, "float32").folder
    made = fusec.compile(folder, tmp_path / "m.fusec", target="cpu", attention_mask=True)
    (target,) = made.document["targets"]
    assert target["residual"] == []
    mask = np.ones((3, 21), dtype=np.int64)
    mask[0, :9] = 0
    mask[1, 15:] = 0
    given = {**tokens(3, 21), "attention_mask": mask}
    got = fusec.load(made.path).run(given)
    for output, values in eager(folder, given, torch.float32).items():
        rows = slice(1, None) if values.ndim == 2 else mask.astype(bool)
        assert largest_error(got[output][rows], values[rows]) <= FLOAT32_TOLERANCE


def test_a_folder_without_weights_gives_names_and_shapes(
    tmp_path: Path, compiled_model: Compile
) -> None:
    folder = tmp_path / "llama"
    folder.mkdir()
    shutil.copy(compiled_model("llama", "float32").folder / "config.json", folder)
    made = fusec.compile(folder, tmp_path / "llama.fusec", target="cpu")
    weights = made.document["weights"]
    assert weights["storage"] == "none"
    assert weights["bytes"] > made.path.stat().st_size
    with pytest.raises(ArtifactError, match="have to be given"):
        fusec.load(made.path)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path, compiled_model: Compile) -> None:
    made = compiled_model("llama", "float32")
    again = fusec.compile(made.folder, tmp_path / "again.fusec", target="cpu")
    assert again.path.read_bytes() == made.compiled.path.read_bytes()
