"""`fusec verify`: right artifacts pass, planted faults are caught and located."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sample_models
from test_cli import Fusec, fusec  # noqa: F401

import fusec as package

ROOT = Path(package.__file__).resolve().parent.parent
SIZES = ("--dim", "batch=2", "--dim", "seq=5")
FAULTS = {
    "gate and up swapped": (
        "kernels/include/fusec/gemm.h",
        "return activate(activation, gate) * up;",
        "return activate(activation, up) * gate;",
        "linear_glu",
    ),
    "eps ignored": (
        "kernels/rms_norm/kernel.cpp",
        "static_cast<float>(n) + eps);",
        "static_cast<float>(n));",
        "rms_norm",
    ),
}
"""A file, what stands there, what is planted, and the operation that is to be named."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A large eps, so that a norm without it is far off.
    folder = tmp_path_factory.mktemp("verify") / "llama"
    return sample_models.build("llama", folder, rms_norm_eps=0.1)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_right_artifact_passes(fusec: Fusec, model: Path, tmp_path: Path, dtype: str) -> None:  # noqa: F811
    artifact = tmp_path / "model.fusec"
    fusec("compile", model, "--target", "cpu", "--dtype", dtype, "-o", artifact)
    result = fusec("verify", artifact, "--against", model, *SIZES, "--save", tmp_path / "kept")
    assert "logits is right" in result.out
    kept = np.load(tmp_path / "kept" / "case-1.npz")
    assert kept["output.logits"].shape == kept["exact.logits"].shape
    again = fusec(
        "verify",
        artifact,
        "--against",
        model,
        "--input",
        tmp_path / "kept" / "case-1.npz",
        "--json",
    )
    assert again.json["verdict"] == "right"
    assert fusec("verify", artifact, "--against", model, *SIZES, "--tol", "logits=1e-12").code == 4


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_located(
    fusec: Fusec,  # noqa: F811
    model: Path,
    tmp_path: Path,
    fault: str,
) -> None:
    file, right, wrong, operation = FAULTS[fault]
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "fusec", tree / "fusec")
    changed = tree / "fusec" / file
    text = changed.read_text()
    assert right in text
    changed.write_text(text.replace(right, wrong))
    artifact = tmp_path / "wrong.fusec"
    subprocess.run(
        [sys.executable, "-m", "fusec", "compile", model, "--target", "cpu", "-o", artifact],
        env={**os.environ, "PYTHONPATH": str(tree)},
        cwd=tree,
        check=True,
    )
    result = fusec("verify", artifact, "--against", model, *SIZES, "--bisect", "--json")
    assert result.code == 4
    found = result.json["bisect"]
    assert found["kind"] == "kernel"
    assert operation in found["kernel"]
    assert found["site"].startswith("model.layers.0.")
