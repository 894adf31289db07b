"""A small model whose norms come behind its sublayers, as in OLMo 2: `post_norm:model`."""

import torch
from torch import nn

HIDDEN = 96


class Norm(nn.Module):
    """RMSNorm, in f32 inside."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.5 + torch.rand(HIDDEN))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Norm rows [..., HIDDEN]."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        weighted: torch.Tensor = self.weight * normed.to(x.dtype)
        return weighted


class Block(nn.Module):
    """An MLP, its norm, and the residual connection around both."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(HIDDEN, 2 * HIDDEN)
        self.down = nn.Linear(2 * HIDDEN, HIDDEN)
        self.norm = Norm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows [..., HIDDEN], and what the block adds to them."""
        added: torch.Tensor = x + self.norm(self.down(torch.relu(self.up(x))))
        return added


class PostNorm(nn.Module):
    """Blocks, and rows that are normed and added to one row for all."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.out = nn.Linear(HIDDEN, HIDDEN)
        self.norm = Norm()
        self.shift = nn.Parameter(torch.rand(1, HIDDEN))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows [batch, seq, HIDDEN]."""
        for block in self.blocks:
            x = block(x)
        shifted: torch.Tensor = self.shift + self.norm(self.out(x))
        return shifted


def model() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """The model, and an input to export it with."""
    torch.manual_seed(0)
    return PostNorm().eval(), (torch.rand(2, 5, HIDDEN),)
