"""The modules that `peers.py` times, as PyTorch users write them.

No module knows of a compiler: each is plain PyTorch, so that every peer gets the same program.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

FP8_MAX = 448.0
"""The largest value of e4m3fn, to which the largest element of a row or group is scaled."""

SMALLEST = 1e-12
"""Keeps the scale of a row of zeros from being zero."""


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Rows of `x` over their root mean square, times `weight`; in f32, rounded to the type of x."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (normed * weight.float()).to(x.dtype)


def to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes in e4m3fn of `x` and an f32 scale for each row."""
    wide = x.float()
    scale = wide.abs().amax(-1, keepdim=True).clamp(min=SMALLEST) / FP8_MAX
    return (wide / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scale


def normal(*shape: int, scale: float = 1.0) -> nn.Parameter:
    """A parameter of normally distributed numbers."""
    return nn.Parameter(scale * torch.randn(shape))


def ones(size: int) -> nn.Parameter:
    """The weight of a norm: about 1, so that a weight that is lost shows."""
    return nn.Parameter(1 + 0.1 * torch.randn(size))


class AddRmsFp8(nn.Module):
    """The join of a residual stream, its norm, and that in fp8 with a scale for each row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = ones(width)

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total = x + residual
        codes, scale = to_fp8(rms_norm(total, self.weight))
        return codes, scale, total


class SiluMulFp8(nn.Module):
    """`silu(gate) * up` of the two halves of a row, in fp8 with a scale for each 128."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = x.chunk(2, -1)
        product = functional.silu(gate) * up
        codes, scale = to_fp8(product.view(*product.shape[:-1], -1, 128))
        return codes.flatten(-2), scale.squeeze(-1)


class GatedRmsNorm(nn.Module):
    """The norm of a head times the silu of a gate, as after linear attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = ones(width)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        normed = rms_norm(x, self.weight)
        return (normed.float() * functional.silu(gate.float())).to(x.dtype)


class DualRmsNorm(nn.Module):
    """The norms of the two low-rank parts of multi-head latent attention."""

    def __init__(self, query_rank: int, key_rank: int) -> None:
        super().__init__()
        self.query, self.key = ones(query_rank), ones(key_rank)

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return rms_norm(query, self.query), rms_norm(key, self.key)


class RmsNorm(nn.Module):
    """RMSNorm of rows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = ones(width)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


class SiluMul(nn.Module):
    """`silu(gate) * up`."""

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        return functional.silu(gate) * up


class Softmax(nn.Module):
    """Softmax of rows."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.softmax(x, -1)


class Linear(nn.Module):
    """A linear without bias.

    Args:
        weight: f32[outputs, inputs].
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.proj = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.proj.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x)
        return out


class Norm(nn.Module):
    """RMSNorm as a part of a block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = ones(width)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


class Attention(nn.Module):
    """Causal attention of grouped queries, with rotary embeddings."""

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.q_proj = nn.Linear(width, heads * self.size, bias=False)
        self.k_proj = nn.Linear(width, groups * self.size, bias=False)
        self.v_proj = nn.Linear(width, groups * self.size, bias=False)
        self.o_proj = nn.Linear(heads * self.size, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        query, key, value = (
            part(x).view(*x.shape[:-1], -1, self.size).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotated(query, cos, sin), rotated(key, cos, sin)
        repeats = self.heads // self.groups
        mixed = functional.scaled_dot_product_attention(
            query,
            key.repeat_interleave(repeats, 1),
            value.repeat_interleave(repeats, 1),
            is_causal=True,
        )
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(-2))
        return out


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embeddings of `x` [batch, heads, seq, size]; `cos` and `sin` are [seq, size]."""
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


class Layer(nn.Module):
    """Attention and a gated product, each after a norm and beside a residual stream."""

    def __init__(self, width: int, inner: int, heads: int, groups: int) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(width), Norm(width)
        self.self_attn = Attention(width, heads, groups)
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        normed = self.post_attention_layernorm(x)
        gated = functional.silu(self.gate_proj(normed)) * self.up_proj(normed)
        out: Tensor = x + self.down_proj(gated)
        return out


class LlamaBlock(nn.Module):
    """Layers of Llama without embeddings and without a head.

    Args:
        length: tokens of a sequence.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self, layers: int, width: int, inner: int, heads: int, groups: int, length: int
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, inner, heads, groups) for _ in range(layers))
        self.norm = Norm(width)
        size = width // heads
        rates = 10000.0 ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
        angles = torch.outer(torch.arange(length, dtype=torch.float64), rates).repeat(1, 2)
        self.register_buffer("cos", angles.cos().float())
        self.register_buffer("sin", angles.sin().float())

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        out: Tensor = self.norm(x)
        return out
