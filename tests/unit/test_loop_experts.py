"""A loop over experts, from a live module to an artifact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

import fusec


class Expert(nn.Module):
    """One SwiGLU expert."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(24, 40, bias=False)
        self.up = nn.Linear(24, 40, bias=False)
        self.down = nn.Linear(40, 24, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = nn.functional.silu(self.gate(x)) * self.up(x)
        result: torch.Tensor = self.down(hidden)
        return result


class Experts(nn.Module):
    """Every expert sees every token; the router decides what counts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router = nn.Linear(24, 5, bias=False)
        self.experts = nn.ModuleList(Expert() for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, indices = self.router(x).softmax(-1).topk(2, dim=-1)
        result = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            share = (weights * (indices == number)).sum(-1, keepdim=True)
            result = result + expert(x) * share
        return result


def test_a_loop_over_experts_is_one_moe(tmp_path: Path) -> None:
    model = Experts().eval()
    made = fusec.compile(
        model,
        tmp_path / "experts.fusec",
        target="cpu",
        example_inputs=(torch.randn(3, 4, 24),),
        dims={"batch": (1, 16)},
    )
    (target,) = made.document["targets"]
    rows = [(row["fusion"], row["site"], row["status"]) for row in target["decisions"]]
    assert rows == [("moe", "experts", "fired")]
    x = np.random.default_rng(1).standard_normal((7, 4, 24)).astype(np.float32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(x)).numpy()
    (got,) = fusec.load(made.path)(x=x).values()
    assert np.abs(np.asarray(got, np.float32) - wanted).max() <= 1e-5
