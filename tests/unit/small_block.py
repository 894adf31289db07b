"""A model of a few nodes that is exported in a second, for tests that need an artifact."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

WIDTH = 48


class Block(nn.Module):
    """A residual join, a norm and a gated activation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(WIDTH) * 0.1 + 1)
        self.gate = nn.Linear(WIDTH, 64, bias=False)
        self.up = nn.Linear(WIDTH, 64, bias=False)
        self.down = nn.Linear(64, WIDTH, bias=False)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> dict[str, torch.Tensor]:
        total = x + residual
        scale = torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + 1e-6)
        normed = self.weight * (total * scale)
        hidden = nn.functional.silu(self.gate(normed)) * self.up(normed)
        return {"y": self.down(hidden) + total}


class TiedBlock(Block):
    """The block, with a weight that is read twice: gate and up cannot be joined."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = super().forward(x, residual)
        return {"y": outputs["y"] + self.gate.weight.sum()}


class Layer(nn.Module):
    """The block as a layer of a stack: one result, norms without random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.gate = nn.Linear(WIDTH, 64, bias=False)
        self.up = nn.Linear(WIDTH, 64, bias=False)
        self.down = nn.Linear(64, WIDTH, bias=False)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        total = x + residual
        normed = self.weight * (total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + 1e-6))
        joined: torch.Tensor = self.down(nn.functional.silu(self.gate(normed)) * self.up(normed))
        return joined + total


def export_block(path: Path, kind: type[Block] = Block) -> Path:
    """Save a block as an archive whose size `batch` may be 1 to 64."""
    rows = torch.export.Dim("batch", min=1, max=64)
    inputs = (torch.randn(3, WIDTH), torch.randn(3, WIDTH))
    program = torch.export.export(kind().eval(), inputs, dynamic_shapes=({0: rows}, {0: rows}))
    torch.export.save(program, path)
    return path
