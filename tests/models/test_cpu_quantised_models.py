"""Checkpoints in few bits on a CPU: weights stay narrow, results are those of their values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from cpu_library import LEVELS
from quantised_folders import exact, quantised
from reference import eager, largest_error, tokens
from safetensors.torch import load_file

import fusec
from fusec.runtime.cpu import host_features

TOLERANCE = 1e-4
"""Of the largest logit, in float32; as for whole models."""

pytestmark = pytest.mark.usefixtures("quiet_progress")


def target() -> str:
    """The richest level of the psABI that this machine runs."""
    missing = set(LEVELS["x86-64-v4"].target.features) - host_features()
    return "x86-64-v3" if missing else "x86-64-v4"


@pytest.mark.parametrize(
    ("name", "layout", "quantize", "ops"),
    [
        ("deepseek_v3", "fp8-block", (), {"fp8_linear", "moe_fp8"}),
        pytest.param(
            "gpt_oss",
            "mxfp4",
            ("mxfp4:*.self_attn.*",),
            {"mxfp4_linear", "moe_mxfp4"},
            marks=pytest.mark.slow,
        ),
        pytest.param("llama", "mxfp4-packed", (), {"mxfp4_linear"}, marks=pytest.mark.slow),
    ],
)
def test_weights_stay_narrow(
    name: str, layout: str, quantize: Sequence[str], ops: set[str], tmp_path: Path
) -> None:
    folder = quantised(name, tmp_path / name, layout)
    compiled = fusec.compile(
        folder, tmp_path / "model.fusec", target=target(), quantize=list(quantize)
    )
    (made,) = compiled.document["targets"]
    assert made["residual"] == []
    assert ops <= {kernel["op"] for kernel in made["kernels"]}
    plain = exact(folder, tmp_path / "plain")
    plain_bytes = sum(tensor.nbytes for tensor in load_file(plain / "model.safetensors").values())
    assert made["memory"]["weights_bytes"] < 0.6 * plain_bytes
    if quantize:
        return  # the values that were asked for are no longer those of the checkpoint
    model = fusec.load(compiled.path)
    for given in (tokens(1, 1), tokens(3, 37)):
        (wanted,) = eager(plain, given, torch.float32).values()
        (got,) = model.run(dict(given)).values()
        assert largest_error(got, wanted) <= TOLERANCE
