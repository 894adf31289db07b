"""A model of two small layers for tests of `fusec verify`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

WIDTH = 64
HIDDEN = 96
"""Both multiples of 32, the group of mxfp4."""


class Mlp(nn.Module):
    """A gated projection up, and one down."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.up = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        return result


class Layer(nn.Module):
    """A norm whose eps is large, so that one without it is far off, and an MLP beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH, eps=0.5)
        self.mlp = Mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.mlp(self.norm(x))
        return result


class Layers(nn.Module):
    """Two of them, and where the result is largest."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Layer(), Layer())

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.layers(x)
        return {"y": y, "largest": y.argmax(-1)}


def model(seed: int = 0) -> tuple[nn.Module, tuple[torch.Tensor], tuple[dict[int, str]]]:
    """The model, example inputs and the name of the dynamic size, as a factory gives them."""
    torch.manual_seed(seed)
    return Layers().eval(), (torch.randn(3, WIDTH),), ({0: "batch"},)


class Codes(nn.Module):
    """Its output is integers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ~(x * 100).long()


def codes() -> tuple[nn.Module, tuple[torch.Tensor], tuple[dict[int, str]]]:
    """The integers with an example and its dynamic axis."""
    return Codes(), (torch.randn(3, 4),), ({0: "batch"},)


def export(path: Path, seed: int = 0) -> Path:
    """Save the model as an archive whose size `batch` may be 1 to 64."""
    made, inputs, _ = model(seed)
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.export.save(torch.export.export(made, inputs, dynamic_shapes=({0: batch},)), path)
    return path
