"""The kernels of `norm_add` against its meaning in float64, and what its guard refuses.

pip install .  &&  pytest
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fusec
from fusec.api import decide
from fusec.emulator import Emulator

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Of a result of size 1: what rounding it once costs, or for f32 a sum over a row."""


class PostNorm(nn.Module):
    """A norm of one value, added to another; torch's own norm."""

    def __init__(self, n: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(n, eps=1e-5, dtype=dtype)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Rows [..., n]."""
        added: torch.Tensor = residual + self.norm(x)
        return added


def compiled(rows: int, n: int, dtype: torch.dtype, target: str, path: Path) -> float:
    """The largest error of `norm_add` on random rows, over the size of the result."""
    generator = torch.Generator().manual_seed(n)
    x, residual = (torch.randn(rows, n, generator=generator).to(dtype) for _ in range(2))
    model = PostNorm(n, dtype)
    fusec.compile(model, path, target=target, example_inputs=(x, residual), require=["norm_add"])
    driver = None if target == "cpu" else Emulator.for_artifact(path, target)
    loaded = fusec.load(path, driver=driver)
    (got,) = loaded(x=x.float().numpy(), residual=residual.float().numpy()).values()
    model.double()
    wanted = model(x.double(), residual.double()).detach().numpy()
    error = np.abs(np.asarray(got, np.float64) - wanted) / np.maximum(1, np.abs(wanted))
    return float(error.max())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "n"), [(1, 1), (3, 17), (7, 129), (2, 2049)])
@pytest.mark.parametrize("target", ["cpu", "gfx950", "gfx942"])
def test_results_are_those_of_float64(
    rows: int, n: int, dtype: torch.dtype, target: str, tmp_path: Path
) -> None:
    assert compiled(rows, n, dtype, target, tmp_path / "m.fusec") <= TOLERANCE[dtype]


def test_the_guard_refuses_a_residual_that_is_widened() -> None:
    inputs = torch.rand(3, 17), torch.rand(1, 17)
    program = torch.export.export(PostNorm(17, torch.float32), inputs)
    (decision,) = decide(program, "gfx950")["gfx950"]
    assert (decision.fusion, decision.status, decision.code) == ("norm_add", "refused", "shape")
    assert decision.hint == "expand it before the sum"


def test_each_target_has_a_kernel_of_its_own(tmp_path: Path) -> None:
    inputs = torch.rand(3, 64), torch.rand(3, 64)
    model = PostNorm(64, torch.bfloat16).bfloat16()
    targets = ["x86-64-v3", "gfx942", "gfx950", "sm_90"]
    made = fusec.compile(
        model,
        tmp_path / "m.fusec",
        target=targets,
        example_inputs=tuple(each.bfloat16() for each in inputs),
    )
    names = [kernel["name"] for each in made.document["targets"] for kernel in each["kernels"]]
    assert names == ["norm_add.cpp", "norm_add.triton", "norm_add.triton", "norm_add.triton"]
