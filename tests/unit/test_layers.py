"""What each layer may import.  The runtime ships without the compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "triton", "transformers", "onnx", "onnxruntime"}
FORBIDDEN = {
    "fusec": {*HEAVY, "networkx", "numpy", "typer"},
    "fusec.runtime": {*HEAVY, "networkx", "typer", "rich", "fusec.ir", "fusec.passes"},
    "fusec.ir": {*HEAVY, "fusec.passes", "fusec.kernels", "fusec.runtime", "fusec.rewrite"},
    "fusec.rewrite": {*HEAVY, "fusec.passes", "fusec.kernels", "fusec.runtime"},
    "fusec.passes": {*HEAVY, "typer", "fusec.kernels", "fusec.runtime", "fusec.cli"},
    "fusec.kernels.registry": {*HEAVY, "fusec.passes", "fusec.runtime", "fusec.frontend"},
    "fusec.lower": {*HEAVY, "typer", "fusec.cli", "fusec.frontend", "fusec.passes"},
    "fusec.frontend": {*HEAVY, "typer", "fusec.cli", "fusec.kernels", "fusec.runtime"},
    "fusec.emulator": {*HEAVY, "typer", "fusec.cli", "fusec.frontend", "fusec.passes"},
    "fusec.cli": HEAVY,
}


@pytest.mark.parametrize("module", FORBIDDEN)
def test_imports_stay_in_their_layer(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not FORBIDDEN[module] & set(done.stdout.split())


def test_every_kernel_record_imports_without_its_compiler() -> None:
    code = "import sys; from fusec.kernels.registry import kernels; kernels(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())
