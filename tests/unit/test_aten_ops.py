"""Each family of ATen operations against eager PyTorch, on random inputs of odd sizes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from aten_check import check, import_module, plain
from torch import Tensor

import fusec
from fusec.diagnostics import UnsupportedError
from fusec.frontend.aten_ops import TABLE
from fusec.frontend.exported import from_exported_program
from fusec.frontend.translate import build_graph, unknown_ops
from fusec.ir.interpret import interpret

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The reduce argument of torch.scatter:UserWarning"),
    pytest.mark.filterwarnings("ignore:var\\(\\). degrees of freedom is <= 0:UserWarning"),
    pytest.mark.filterwarnings("ignore:std\\(\\). degrees of freedom is <= 0:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning"),
    pytest.mark.filterwarnings("ignore:Using torch.cross without specifying the dim:UserWarning"),
]

Body = Callable[[Tensor, Tensor], object]


class Function(torch.nn.Module):
    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> object:
        return self.function(x, y)


def unary(x: Tensor, y: Tensor) -> object:
    p = x.abs() + 0.1
    u = x / 10
    return (
        x.exp(), x.exp2(), x.expm1(), p.log(), p.log2(), p.log1p(), p.log10(), p.sqrt(),
        p.rsqrt(), p.reciprocal(), x.sin(), x.cos(), x.tan(), u.asin(), u.acos(), x.atan(),
        x.sinh(), x.cosh(), x.tanh(), x.asinh(), (p + 1).acosh(), u.atanh(), x.erf(), x.erfc(),
        x.floor(), x.ceil(), x.round(), x.trunc(), x.sign(), x.neg(), x.abs(), x.square(),
        x.frac(), x.sigmoid(), torch.logit(p / 20), torch.sinc(x), x.round(decimals=1),
        torch.fix(x), torch.sgn(x), torch.special.expit(x), torch.arcsin(u),
        torch.erfinv(u), torch.erfinv(x.clamp(-1.0, 1.0)),
    )  # fmt: skip


def unary_of_integers(x: Tensor, y: Tensor) -> object:
    i = (x * 10).to(torch.int32)
    return (
        i.exp2() * 0,
        i.sin(),
        i.abs(),
        i.neg(),
        i.sign(),
        i.floor(),
        torch.relu(i),
        i.sigmoid(),
        (x > 0).square(),
    )


def special(x: Tensor, y: Tensor) -> object:
    odd = torch.tensor([0.0, -0.0, -1.0, 1.0, 2.0, 1e-30, 9.99, 171.5, 1e36, math.inf, math.nan])
    negative = torch.tensor([-0.5, -1.5, -7.25, -1e-30, -100.3, -math.inf])
    bessel = torch.tensor([0.0, 1e-20, -3.0, 85.0, -88.0, math.nan])
    double, i = (x * 30).double(), (x * 5).to(torch.int32)
    return (
        *(f(v) for f in (torch.lgamma, torch.digamma) for v in (x * 9, odd, negative, double, i)),
        *(f(v) for f in (torch.i0, torch.special.i1) for v in (x * 9, bessel, double, i)),
        torch.i0(double * 9),
    )  # fmt: skip


def activations(x: Tensor, y: Tensor) -> object:
    return (
        F.relu(x), F.relu6(x * 4), F.silu(x), F.gelu(x), F.gelu(x, approximate="tanh"),
        F.softplus(x), F.softplus(x, beta=2, threshold=1), F.leaky_relu(x, 0.2), F.elu(x, 0.7),
        F.celu(x, 0.6), F.selu(x), F.hardswish(x * 2), F.hardsigmoid(x * 2), F.mish(x),
        F.logsigmoid(x), F.hardtanh(x, -0.4, 0.3), F.threshold(x, 0.1, 5.0), F.hardshrink(x),
        F.softshrink(x), F.softsign(x), F.tanhshrink(x), F.glu(y), F.prelu(x, y[0, :1]),
        F.prelu(x, x[0]), F.rrelu(x, 0.1, 0.3),
    )  # fmt: skip


def binary(x: Tensor, y: Tensor) -> object:
    a, b = x, y[:, :1]
    i = (x * 10).to(torch.int64)
    j = torch.where(i % 3 == 0, -2, 3)
    least = torch.iinfo(torch.int64).min + i * 0
    return (
        a + b, a - b, a * b, a / b, torch.add(a, b, alpha=2), torch.sub(a, b, alpha=0.5),
        torch.rsub(a, b, alpha=3), 2 - a, a + 1, a * 2.5, 3 / a, a // b, a % b, torch.fmod(a, b),
        torch.remainder(i, j), torch.fmod(i, j), i // j, torch.div(i, j, rounding_mode="trunc"),
        torch.div(a, b, rounding_mode="trunc"), torch.div(i, j, rounding_mode="floor"), i / j,
        torch.div(least, j, rounding_mode="trunc"), torch.div(j, least, rounding_mode="trunc"),
        torch.minimum(a, b), torch.maximum(a, b), torch.max(a, b), torch.atan2(a, b),
        torch.hypot(a, b), torch.logaddexp(a, b), torch.addcmul(a, b, a, value=0.3),
        torch.addcdiv(a, b, a, value=2), torch.lerp(a, b, 0.25), torch.lerp(a, b, a),
        a.abs() ** b, a**2, a**3, a.abs() ** 0.5, a.abs() ** -0.5, 2**a, a**0, a**-1, i**2,
        i.abs() ** 2.5, torch.float_power(a.abs(), 2), torch.xlogy(a, b.abs()),
        torch.heaviside(a, b[0]), torch.cross(x[:, :3], y[:, 1:4], dim=1), True + i, i + 0.5,
        i * True,
    )  # fmt: skip


def integers_wrap(x: Tensor, y: Tensor) -> object:
    byte = torch.tensor([0, 1, 7, 100, 200, 255], dtype=torch.uint8)
    short = torch.tensor([-32768, -3, 0, 9, 300, 32767], dtype=torch.int16)
    place = torch.tensor([0, 1, 2, 3, 5, 7], dtype=torch.uint8)
    return (
        ~byte, -byte, byte - 1, byte * 3, byte + 200, byte << place, (~byte) // 2, ~byte > 250,
        short * 3, -short, short + 1, short.abs(), short.to(torch.int8), short << 1,
        (short.int() * 70000), byte.cumsum(0, dtype=torch.uint8), byte.sum(),
    )  # fmt: skip


def promotion(x: Tensor, y: Tensor) -> object:
    half, brain = x.half(), x.bfloat16()
    byte, flag = (x.abs() * 3).to(torch.uint8), x > 0
    scalar = torch.tensor(2.5, dtype=torch.float64)
    whole = torch.tensor(7)
    return (
        half + brain, half.float() * scalar, byte + byte.to(torch.int8), byte + 1, flag + 1,
        flag + flag, flag * flag, flag * 2.0, byte * 1.0, byte + whole,
        byte.to(torch.int32) / whole, flag & (byte > 1), torch.where(flag, 1, 2.0),
        torch.where(flag, x, 0.0), torch.where(flag, byte, x), x.type_as(scalar), x.to(scalar),
        x.double() + y[:, :1],
    )  # fmt: skip


def defaults_and_corners(x: Tensor, y: Tensor) -> object:
    inf, nan = math.inf, math.nan
    odd = torch.tensor([1.0, inf, -inf, nan, 0.0, -0.0, 2.5, -inf])
    other = torch.tensor([inf, inf, -inf, nan, -0.0, 1e-9, 2.5, 1.0])
    whole = torch.tensor([100000, 3, -100000])
    cube = torch.stack([x, x * 2, x + 1])[:, :, :3]
    square = x[:, :3]
    image = torch.stack([y, y - 1])[None].repeat(1, 1, 3, 2)[:, :, :7, :5]
    return (
        torch.nansum(odd[3:7]), torch.nansum(odd[3:7].reshape(2, 2), 1, keepdim=True),
        torch.isclose(odd, other), torch.isclose(odd, other, equal_nan=True),
        torch.isclose(whole, whole + 1), torch.logaddexp(odd, other), torch.signbit(odd),
        F.threshold(odd, 0.1, 5.0), torch.angle(odd), torch.angle(x.double()),
        torch.cross(cube, cube + y[0, :3]), torch.linalg.cross(cube, cube + y[0, :3]),
        torch.linalg.norm(x), torch.linalg.norm(x, 1), torch.linalg.norm(x, inf),
        torch.linalg.norm(cube, -1, dim=(2, 0), keepdim=True),
        torch.linalg.norm(cube, -inf, dim=(-2, 0)), torch.linalg.norm(x, 3, dim=1),
        torch.addbmm(square * nan, cube, cube, beta=0),
        torch.addbmm(square, cube, cube, beta=0.5, alpha=2),
        x.roll(8, 1), x.roll(-8, 1), x.roll(5, 1),
        F.avg_pool2d(image, 2, ceil_mode=True), F.pad(image, (-1, 2, 3, -2), mode="reflect"),
        F.pad(image, (-1, 2, 2, -2), mode="replicate"), F.pad(x[None], (-5, 4), mode="replicate"),
        F.pad(image[0], (2, -2), mode="circular"),
        F.interpolate(image.repeat(1, 1, 3, 3), scale_factor=1.05, mode="nearest-exact"),
        torch.arange(0, 6, 1.5, dtype=torch.int64), torch.arange(0.5, 5, dtype=torch.int64),
        torch.ones(2, 2, dtype=torch.uint8).any(), torch.ones(2, 2, dtype=torch.uint8).all(1),
    )  # fmt: skip


def scalars(x: Tensor, y: Tensor) -> object:
    """A scalar counts as having one axis wherever an axis is named."""
    s, place = x[0, 0], torch.tensor([0])
    other = y[0, :1]
    return (
        *s.sort(), s.argsort(0), *s.topk(1), *s.kthvalue(1), s.msort(), s.softmax(-1),
        s.log_softmax(0), s.unfold(0, 1, 1), s.unfold(0, 0, 1), s.cumsum(0), s.cumprod(-1),
        s.logcumsumexp(0), *s.cummax(0), s.flip(0), s.median(),
        *s.median(0, keepdim=True), s.index_select(0, place), s.index_add(0, place, s, alpha=3),
        s.index_copy(0, place, other[0]), s.index_fill(0, place, 2.0), s.scatter(0, place, other),
        s.scatter_add(0, place, other), s.scatter_reduce(0, place, other, "prod"),
        s.scatter_reduce(0, place, other, "amax", include_self=False),
    )  # fmt: skip


def nothing(x: Tensor, y: Tensor) -> object:
    """Rows without elements, and variances of too few."""
    none = x[:, :0]
    return (
        none.softmax(1), none.log_softmax(1), none.logsumexp(1), none.sum(1), none.prod(1),
        none.mean(1), none.var(1), none.var(1, correction=0), none.std(), x[:, :1].var(1),
        x[:, :1].std(1, correction=2), none.cumsum(1), torch.diff(x, 9, 1), torch.diff(none),
        torch.diff(x, 0, prepend=y), x[0].gather(0, (x > 0)[:, :0].long()),
    )  # fmt: skip


def in_autocast(x: Tensor, y: Tensor) -> object:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return x.t() @ y


def comparisons(x: Tensor, y: Tensor) -> object:
    i = (x * 3).to(torch.int64)
    odd = torch.tensor([1.0, math.inf, -math.inf, math.nan, 0.0])
    signs = torch.tensor([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf])
    return (
        x == y[:, :1], x != y[:, :1], x < 0, x <= 0.1, x > i, x >= 1, i == 1.5, i < True,
        ~(x > 0), ~i, torch.logical_not(i), torch.logical_and(i, x > 0), torch.logical_or(i, x),
        torch.logical_xor(i, x > 0), i & 3, i | 4, i ^ 5, i << 1, i >> 1, (x > 0) ^ True,
        torch.isnan(odd), torch.isinf(odd), torch.isfinite(odd), torch.isneginf(odd),
        torch.isposinf(odd), torch.nan_to_num(odd), torch.nan_to_num(odd, 1.0, 2.0, -3.0),
        torch.isin(i, torch.tensor([1, -2, 0])), torch.isclose(x, x + 1e-7),
        x.masked_fill(x > 0, 3), x.clamp(-0.3, 0.4), x.clamp(min=y[:, :1]), i.clamp(max=1.5),
        x.clamp(y[:, :1].min(), y[:, :1]), x.clamp_min(0.2), i.clamp_max(2),
        torch.clip(x, max=0.1), torch.signbit(signs), torch.signbit(i),
        torch.isclose(odd, odd.flip(0)), torch.isclose(odd[:2], odd[1:3]),
        torch.fmax(odd, odd.flip(0)), torch.fmin(odd, signs[1:]), torch.copysign(odd, signs[:5]),
        torch.copysign(i, -2.0), torch.maximum(x > 0, y[:, :1] > 0), torch.fmin(i, i > 0),
        torch.minimum(x > 0, y[:, :1] > 0), torch.ldexp(x, i), (x > 0).clamp(min=y[:, :1] > 0),
        F.threshold(odd, 0.5, 9.0), torch.logaddexp(odd, odd), torch.logaddexp(odd, -odd),
        torch.angle(odd), torch.sign(odd), torch.sgn(-odd),
    )  # fmt: skip


def reductions(x: Tensor, y: Tensor) -> object:
    z = torch.stack([x, x * 2 + 1])
    i = (x * 3).to(torch.int32)
    odd = torch.tensor([-math.inf, 1.0, 0.0, 1.0, math.nan, 2.0, math.nan, 3.0])
    return (
        z.sum(), z.sum(1), z.sum((0, 2), keepdim=True), i.sum(), (x > 0).sum(1), z.mean(),
        z.mean(-1), z.mean((0, 1)), x.mean(0, dtype=torch.float64), x.prod(), x.prod(1),
        i.prod(0), z.amax(1), z.amin((0, 2)), z.amax(), z.max(), z.min(), *z.max(1),
        *z.min(2, keepdim=True), *torch.aminmax(x, dim=1), z.argmax(), z.argmax(1),
        z.argmin(-1, keepdim=True), (x > 0).any(), (x > 0).any(1), (x > 0).all(0, keepdim=True),
        i.any(1), (x > 3).all(), torch.count_nonzero(i), torch.count_nonzero(i, 1),
        torch.logsumexp(z, (0, 2)), torch.logsumexp(x, 1, keepdim=True), z.var(), z.var(1),
        z.std((0, 2)), z.var(2, correction=0), x.std(1, unbiased=False), *torch.var_mean(x, 1),
        *torch.std_mean(x, 0, keepdim=True), torch.linalg.vector_norm(x),
        torch.linalg.vector_norm(x, 1, dim=1), x.norm(), x.norm(dim=1),
        torch.linalg.vector_norm(x, math.inf, dim=0, keepdim=True), x.norm(3, dim=1),
        torch.linalg.norm(x, dim=1), F.normalize(x, dim=1), x.sum(()), (x > 0).cumsum(1),
        x.cumsum(0), x.cumprod(1), i.cumsum(1), (x * 99).logcumsumexp(1), *z.cummax(0),
        *z.round().cummin(-1), *i.cummax(1), *(x > 0).cummin(0), *odd.cummax(0), *odd.cummin(0),
        x.softmax(-1), x.log_softmax(0),
        F.softmax(x, 1, dtype=torch.float64), (x > 0).max(1).values,
        x.trace() if x.shape[0] == x.shape[1] else x[:, :3].trace(),
    )  # fmt: skip


def ordering(x: Tensor, y: Tensor) -> object:
    i = (x * 3).to(torch.int64)
    odd = torch.tensor([math.nan, 1.0, math.nan, math.nan])
    return (
        *x.topk(2), *x.topk(3, 0, largest=False), *x.sort(), *x.sort(0, descending=True),
        x.argsort(1), *torch.sort(i, dim=1, stable=True),
        torch.argsort(i, dim=0, descending=True, stable=True), *x.kthvalue(2, 1),
        x.median(), *x.median(0), *y.nanmedian(1, keepdim=True), odd.median(), odd.nanmedian(),
        odd.view(2, 2).median(1).values, odd.view(2, 2).nanmedian(0).values, i.median(),
        torch.histc(x, 5, -2, 2), torch.msort(x), torch.searchsorted(x.sort(1).values, y),
        torch.bucketize(x, torch.tensor([-1.0, 0.0, 0.5])),
        torch.bucketize(torch.tensor([math.nan, -math.inf]), torch.tensor([0.0, 1.0])),
        torch.bucketize(torch.tensor([math.nan, 1.0]), torch.tensor([0.0, 1.0]), right=True),
        torch.bucketize(i, torch.tensor([-1, 0, 2]), right=True),
    )  # fmt: skip


def views(x: Tensor, y: Tensor) -> object:
    z = torch.stack([x, x + 1, x - 1, x * 2])  # [4, 3, 5]
    return (
        z.view(2, -1), z.reshape(-1), z.flatten(1), torch.unflatten(z, 0, (2, 2)),
        z.transpose(0, -1), z.permute(2, 0, 1), z.movedim(0, 2), torch.movedim(z, (0, 2), (1, 0)),
        x.t(), x.T, z.mT, z.unsqueeze(-1), z.unsqueeze(1).squeeze(), z[:1].squeeze(0),
        z[:1, :1].squeeze((0, 1)), z[1], z[-1, :, 2], z[:, 1:], z[..., -2:], z[:, :, ::2],
        z[1:3, :-1, 1:4:2], z[-3:-1], z[:100], z[2:1], x[:, None] + x[None], z.narrow(2, 1, 3),
        z.select(1, -1), *torch.split(z, 3), *torch.split(z, [1, 2, 1]), *z.chunk(3, 2),
        *torch.tensor_split(z, 3, 2), *torch.tensor_split(z, (1, 4), 2), *z.unbind(1),
        x.expand(2, 3, 5), x[:, :1].expand(-1, 4), x[0].expand_as(x),
        torch.broadcast_to(x[0], (2, 5)), z.diagonal(), z.diagonal(1, 1, 2), z.diagonal(-1, 0, 2),
        x.unfold(1, 3, 1), z.unfold(0, 2, 2), z.swapaxes(0, 1), x.view_as(x.clone()),
        x.as_strided((2, 3), (2, 1), 1), x.contiguous().view(torch.float32),
        torch.ops.aten.slice_copy.Tensor(x, 1, 1, 3), x.mH, x.adjoint(),
        *torch.hsplit(x[:, :4], 2),
    )  # fmt: skip


def moving(x: Tensor, y: Tensor) -> object:
    i, flag = (x * 3).to(torch.int64), x > 0
    wide = torch.broadcast_tensors(x[0], x)  # type: ignore[no-untyped-call]
    return (
        torch.cat([x, y], 1), torch.cat([x, i[:1]]), torch.stack([x, -x], -1),
        torch.hstack([x, y]), torch.vstack([x[0], x]), torch.column_stack([x[:, 0], y]),
        x.repeat(2, 3), x.repeat(2, 1, 1), torch.tile(x, (2,)), x.repeat_interleave(3, 1),
        x.repeat_interleave(2), x.flip(0), x.flip((0, 1)), x.roll(1, 0), x.roll((2, -1), (1, 0)),
        x.roll(7), torch.rot90(x), torch.fliplr(x), F.pad(x, (1, 2)),
        F.pad(x, (0, 1, 2, -1), value=3.0), F.pad(flag, (1, 1)), F.pad(i, (-1, 2)),
        F.pad(x[None], (2, 1), mode="reflect"), F.pad(x[None], (2, 1), mode="replicate"),
        F.pad(x[None], (3, 0), mode="circular"),
        F.pad(x[None, None], (1, 1, 2, 0), mode="reflect"), torch.diff(x), torch.diff(x, 2, 0),
        torch.diff(flag), torch.diff(i, dim=1, prepend=i[:, :1]),
        *torch.meshgrid(x[0], y[0], indexing="ij"), *torch.meshgrid(x[0], y[0], indexing="xy"),
        x.tril(), x.triu(1), flag.tril(-1), torch.diag(x[0]), torch.diag(x, 1),
        torch.diag_embed(x), torch.diag_embed(x, 1), torch.diag_embed(x, -2, 0, 1), *wide,
        F.pixel_shuffle(x[:, :4].reshape(1, 4, 1, 3), 2),
        F.pixel_unshuffle(x[:2, :4][None, None], 2),
        F.channel_shuffle(x[:, :4].reshape(1, 6, 2, 1), 3),
    )  # fmt: skip


def creation(x: Tensor, y: Tensor) -> object:
    return (
        torch.arange(5), torch.arange(1, 9, 2), torch.arange(0, 1, 0.3), torch.arange(5.0),
        torch.arange(3, -4, -2), torch.arange(1, 4, dtype=torch.float32), torch.zeros(2, 3),
        torch.ones_like(x), torch.full((2, 2), 3), torch.full_like(x, -math.inf), x.new_zeros(3),
        x.new_full((2,), 7.5), x.new_ones((1, 2), dtype=torch.bool), torch.linspace(0, 1, 7),
        torch.eye(3), torch.eye(2, 4), torch.tril_indices(3, 4), torch.triu_indices(3, 3, 1),
        torch.tensor([[1, 2], [3, 4]]), torch.tensor(2.5) + x, torch.zeros((), dtype=torch.int32),
        torch.empty_like(x).copy_(x), F.one_hot((y[:, :3].abs() * 2).long().clamp(max=3), 4),
        torch.scalar_tensor(3.0), torch.zeros_like(x, dtype=torch.int64), torch.outer(x[0], y[0]),
    )  # fmt: skip


def indexing(x: Tensor, y: Tensor) -> object:
    z = torch.stack([x, x + 1, x - 1, x * 2])  # [4, 3, 5]
    i, j = torch.tensor([2, 0, -1]), torch.tensor([[1], [0]])
    where = (y[:, :2].abs() * 2).long().clamp(max=2)
    rows = torch.tensor([[0, 2, 1, 1, 0]])
    a = x.clone()
    a[i[:2], 1] = 4.0
    b = z.clone()
    b[:, i[:2]] = x[:2]
    c = z.clone()
    c[i[:2], :, torch.tensor([1, 4])] = 0.5
    return (
        z[i], z[:, i], z[i, :, i], z[j, i], z[:, j, i], z[..., i], z[i, 1], z[None, i],
        z.index_select(2, i.abs()), z[i[:, None], torch.tensor([0, 1])], x.gather(1, where),
        x.gather(0, rows), torch.take_along_dim(x, x.argsort(1), 1),
        x.take(torch.tensor([0, 14, 3])), F.embedding(where, x), x.scatter(1, where, y[:, :2]),
        x.scatter(1, where, 2.0), x.scatter(0, rows, y[:1, :1].expand(1, 5)),
        x.scatter_add(0, rows, x[:1]), x.scatter_reduce(1, where, y[:, :2], "amax"),
        x.scatter_reduce(0, rows, x[:1], "mean"),
        x.scatter_reduce(0, rows, x[:1], "sum", include_self=False),
        x.scatter_reduce(0, rows, y[:1, :1].expand(1, 5), "amin", include_self=False),
        where.scatter_reduce(1, where[:, :1], where[:, 1:], "amax", include_self=False),
        x.scatter(1, where[:, :1], y[:, :1], reduce="multiply"),
        x.index_add(1, torch.tensor([1, 1]), y[:, :2], alpha=2),
        x.index_copy(0, torch.tensor([2]), x[:1]), x.index_fill(1, torch.tensor([0, 3]), 9.0), a,
        b, c, torch.where(x > 0, x, y[:, :1]), x.masked_scatter(x > 0, y.repeat(2, 2)),
        x[0].masked_scatter(x > 0, y.repeat(2, 2)), (x > 0).index_add(1, j[:, 0], y[:, :2] > 0),
        (x > 0).scatter_reduce(1, where, y[:, :2] > 0, "amin", include_self=False),
        (x > 0).scatter_reduce(1, where, y[:, :2] > 0, "amax", include_self=False),
        torch.slice_scatter(x, y[:, :2], 1, 1, 3),
        torch.select_scatter(x, y[0, :1].expand(5), 0, 1), torch.diagonal_scatter(x, y[0, :3]),
        x.index_put((i[:2].abs(),), y[0, 0], accumulate=True),
        (x > 0).index_put((x > 1,), y[0, 0] > 0, accumulate=True),
    )  # fmt: skip


def bags(x: Tensor, y: Tensor) -> object:
    rows, starts = torch.tensor([2, 0, 1, 1, 2, 0, 2]), torch.tensor([0, 3, 3, 5])
    return (
        F.embedding_bag(rows, x, starts), F.embedding_bag(rows, x, starts, mode="max"),
        F.embedding_bag(rows.int(), x, starts.int(), mode="sum", include_last_offset=True),
        F.embedding_bag(rows, x, starts, mode="sum", per_sample_weights=y.flatten()[:7]),
        F.embedding_bag(rows[:6].view(2, 3), x),
    )  # fmt: skip


def products(x: Tensor, y: Tensor) -> object:
    a, b = x, y.t() @ x  # [3, 5], [4, 5]
    batch = torch.stack([a, a + 1])  # [2, 3, 5]
    square = a @ a.t()
    solve = torch.linalg.solve_triangular
    return (
        a @ b.t(), torch.mm(a, b.t()), torch.bmm(batch, batch.mT), batch @ b.t(), a @ b[0],
        b[0] @ b.t(), b[0] @ b[1], batch @ b[0], b[0] @ batch.mT, torch.mv(a, b[0]),
        torch.dot(b[0], b[1]), torch.addmm(y, a, b.t(), beta=0.5, alpha=2),
        torch.baddbmm(batch @ batch.mT, batch, batch.mT, beta=0.3),
        torch.addbmm(torch.zeros(3, 3), batch, batch.mT), F.linear(a, b), F.linear(a, b, y[0]),
        F.linear(batch, b), F.linear(a[0], b), torch.inner(a, b),
        torch.tensordot(batch, b, dims=([2], [1])), torch.kron(a, y[:1]),
        torch.einsum("ij,kj->ik", a, b), torch.einsum("bij,kj->bki", batch, b),
        torch.einsum("bij,bkj->bik", batch, batch), torch.einsum("i,j->ij", a[0], b[0]),
        torch.einsum("...ij,jk->...ik", batch, b.t()), torch.einsum("ij->ji", a),
        torch.einsum("bij->j", batch), torch.einsum("bij,bij->b", batch, batch),
        torch.einsum("ii->i", a[:, :3]), torch.einsum("bij,ij->bij", batch, a),
        torch.einsum("bij,j,bi->b", batch, b[0], batch[..., 0]),
        F.cosine_similarity(a, b[:3], dim=1), F.cosine_similarity(batch, b[0], dim=-2),
        torch.cdist(a, b),
        torch.linalg.multi_dot([a, b.t(), y.t()]),
        solve(torch.eye(3) * 3 + square.tril(), a, upper=False),
        solve(square.tril(-1) * 0.1, y, upper=False, unitriangular=True),
        solve(torch.eye(3) * 3 + square.triu(), a.t(), upper=True, left=False),
        torch.outer(a[0] > 0, b[0] > 0),
    )  # fmt: skip


def norms(x: Tensor, y: Tensor) -> object:
    image = torch.stack([x, x * 2 - 1, x.cos(), x.sin()])[None].repeat(2, 1, 1, 1)  # [2, 4, 3, 5]
    scale, shift = y[0] + 2, y[1]
    return (
        F.layer_norm(x, (5,)), F.layer_norm(x, (5,), x[0], x[1], 1e-3),
        F.layer_norm(image, (3, 5), x, x), F.layer_norm(x, (5,), x[0]),
        F.rms_norm(x, (5,), x[0], 1e-6), F.rms_norm(x, (5,)), F.rms_norm(image, (3, 5), x),
        F.group_norm(image, 2, scale, shift), F.group_norm(image, 4), F.instance_norm(image),
        F.batch_norm(image, shift, scale, scale, shift),
        F.batch_norm(x[:, :4], shift, scale.abs()),
        F.batch_norm(image, None, None, scale, shift, training=True),
        torch._weight_norm(image, image[:, :1, :1, :1] + 3, 0),
        torch._weight_norm(x, x[:1] + 3, 1), torch._weight_norm(x, x[:1, :1] + 3, -1),
    )  # fmt: skip


def attention(x: Tensor, y: Tensor) -> object:
    q = torch.stack([x, x + 1, x.sin(), x.cos()])[None]  # [1, 4, 3, 5]
    k = torch.cat([q, q * 0.5], 2)  # [1, 4, 6, 5]
    v = k[..., :4]
    mask = y[:, :1] + torch.arange(6) * 0.1
    return (
        F.scaled_dot_product_attention(q, q, q),
        F.scaled_dot_product_attention(q, k, v, scale=0.3),
        F.scaled_dot_product_attention(q, q, q, is_causal=True),
        F.scaled_dot_product_attention(q, k, v, is_causal=True),
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask > 0.2),
        F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True),
        F.scaled_dot_product_attention(q[0], k[0], v[0]),
        F.scaled_dot_product_attention(q[0, 0], k[0, 0], v[0, 0]),
        F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask),
    )  # fmt: skip


def convolutions(x: Tensor, y: Tensor) -> object:
    line = torch.stack([x, x.sin()])  # [2, 3, 5]
    image = torch.stack([line, line + 1, line.cos(), line * 2], 1)  # [2, 4, 3, 5]
    w1, w2 = (
        y[:, :3].reshape(3, 3, 1) * torch.arange(1, 4),
        y[:, :2].reshape(3, 1, 2, 1).repeat(1, 4, 1, 3),
    )
    deep = y.t().reshape(4, 1, 3)
    return (
        F.conv1d(line, w1), F.conv1d(line, w1, x[:, 0], padding=2, stride=2),
        F.conv1d(line, w1, dilation=2), F.conv1d(line, w1[..., :2], padding="same"),
        F.conv1d(line, w1, padding="valid"), F.conv1d(line[0], w1),
        F.conv1d(image[:, :, 0], deep, groups=4, padding=1), F.conv2d(image, w2),
        F.conv2d(image, w2, x[:, 0], (1, 2), (1, 0)), F.conv2d(image, w2, padding="same"),
        F.conv3d(image[:, None], w2[:, :1, None]),
        F.conv_transpose1d(line, w1, stride=2, padding=1, output_padding=1),
        F.conv_transpose1d(line, w1, dilation=2),
        F.conv_transpose2d(image, w2.transpose(0, 1)[:, :2], groups=2, stride=(1, 2)),
        F.avg_pool1d(line, 2), F.avg_pool2d(image, 2, 1), F.avg_pool2d(image, 3, 2, 1),
        F.max_pool1d(line, 3, 2, 1), F.avg_pool2d(image, 3, 2, 1, count_include_pad=False),
        F.max_pool2d(image, 2), F.max_pool2d(image, 2, 2, 0, 1, True),
        F.avg_pool2d(image, 2, 2, ceil_mode=True), F.avg_pool2d(image, 3, 2, 1, ceil_mode=True),
        F.avg_pool2d(image, 3, 2, 1, ceil_mode=True, count_include_pad=False),
        F.avg_pool2d(image, (1280, 3), ceil_mode=True), F.max_pool2d(image, (640, 1), 1, (320, 0)),
        F.max_pool1d(line[..., :1], 2, 1, 1, 2), F.max_pool1d(line, 3, 1, 1, 2),
        F.adaptive_avg_pool1d(line, 1), F.adaptive_avg_pool2d(image, (2, 3)),
        F.adaptive_avg_pool2d(image, 1), F.adaptive_max_pool2d(image, (2, 2)),
        F.adaptive_max_pool3d(image, (2, 1, 2)),
        F.unfold(image, 2, padding=1, stride=2),
    )  # fmt: skip


def resampling(x: Tensor, y: Tensor) -> object:
    line, image = x[None], x[None, None].repeat(1, 2, 1, 1)
    return (
        F.interpolate(line, 8), F.interpolate(image, scale_factor=2),
        F.interpolate(image, (7, 4)), F.interpolate(image, (4, 9), mode="nearest-exact"),
        F.interpolate(line, 9, mode="linear"), F.interpolate(image, (7, 3), mode="bilinear"),
        F.interpolate(image, (7, 3), mode="bilinear", align_corners=True),
        F.interpolate(image, scale_factor=1.7, mode="bilinear"),
        F.interpolate(image, (5, 8), mode="bicubic"),
        F.interpolate(image, (5, 8), mode="bicubic", align_corners=True),
        F.interpolate(image, (2, 3), mode="bilinear", antialias=True),
        F.interpolate(image, (2, 8), mode="bicubic", antialias=True),
    )  # fmt: skip


def complex_numbers(x: Tensor, y: Tensor) -> object:
    pairs = y.reshape(3, 2, 2)
    turn = torch.polar(torch.ones(3, 2), x[:, :2])
    z = torch.view_as_complex(pairs) * turn
    wide = z[:, None].expand(3, 2, 2).reshape(6, 2)
    return (
        torch.view_as_real(z).flatten(1), z.real, z.imag, z.abs(), z.angle(), (z * z.conj()).real,
        torch.view_as_real(wide), (z / turn).real, (z + 1 - turn).imag, (z @ turn.mT).real,
        torch.add(z, turn, alpha=2).real, torch.sub(x[:, :2], z, alpha=-3.5).imag,
        torch.rsub(z, turn, alpha=2).real, torch.add(z, x[:, :2], alpha=2j).imag,
        torch.vdot(z[0], turn[1]).imag,
        torch.cat([z, x[:, :2]], 1).imag, F.pad(z, (1, 2), value=3.0).imag,
        F.pad(z, (1, 1), mode="reflect").imag,
        torch.complex(x[:, :2], x[:, 2:4]).imag, torch.view_as_real(torch.cat([z, turn], -1)),
        torch.view_as_real(z.transpose(0, 1).sum(0) * 2.0), (turn * x[:, :2]).real,
    )  # fmt: skip


def fourier(x: Tensor, y: Tensor) -> object:
    z = torch.fft.fft(y, dim=0)
    return (
        torch.fft.fft(x).real, torch.fft.fft(x, n=4).imag, torch.fft.fft(x, 7, 0, "ortho").real,
        torch.fft.fftn(x).real, torch.fft.fft2(x[None], norm="forward").imag,
        torch.fft.ifft(z, dim=0).real, torch.fft.rfft(x).imag,
        torch.fft.irfft(x), torch.fft.irfft(torch.fft.rfft(x), 5),
        torch.fft.irfft(torch.fft.rfft(y)),
        torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real,
    )  # fmt: skip


BODIES: list[Body] = [
    unary, unary_of_integers, special, activations, binary, promotion, comparisons, reductions,
    ordering, defaults_and_corners, scalars, nothing, integers_wrap, views, moving, creation,
    indexing, bags, products, norms, attention, convolutions, resampling, complex_numbers, fourier,
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_family(body: Body) -> None:
    torch.manual_seed(3)
    check(
        Function(body),
        torch.randn(3, 5),
        torch.randn(3, 4),
        tolerance=2e-2 if body is promotion else 3e-5,
    )


@pytest.mark.parametrize(
    "body", [norms, views, reductions, convolutions, attention, fourier], ids=lambda b: b.__name__
)
def test_decomposed(body: Body) -> None:
    """PyTorch's core decompositions give other operations for the same."""
    torch.manual_seed(4)
    check(Function(body), torch.randn(3, 5), torch.randn(3, 4), decompose=True, tolerance=3e-5)


def test_lengths_are_squared_in_f64() -> None:
    """Squares of f16 from 256 on, and those of f32 from 2**64 on, do not fit."""
    graph = check(Function(torch.hypot), torch.randn(3, 5), torch.randn(3, 1))
    assert [graph.type(node.output).dtype for node in graph.nodes() if node.op == "sqrt"] == ["f64"]


def dynamic_sizes(x: Tensor, y: Tensor) -> object:
    """x [batch, seq, 6]."""
    batch, seq, width = x.shape
    half = seq // 2
    flat = x.reshape(batch * seq, width)
    causal = torch.ones(seq, seq, dtype=torch.bool).tril()
    return (
        x[:, 1:], x[:, :-1], x[:, -1:], x[:, 2::2], x[:, -1], x.reshape(batch, -1),
        half * x[:, 1:], flat * 2, x.view(batch, seq, 2, 3).transpose(1, 2),
        torch.arange(seq) * 2, torch.arange(1, seq + 1, dtype=torch.float32) / seq, x.mean(1),
        x.std(1), x / math.sqrt(width), x * seq, x * (seq**0.5), x / batch,
        F.pad(x, (0, 0, 1, seq)), torch.cat([x, x[:, :1]], 1), causal, x.roll(1, 1),
        torch.full((batch, seq), seq), torch.zeros(batch, seq + 1).fill_(2), x.repeat(2, 1, 1),
        x.masked_fill(causal[:, :1], 0.0), x.flip(1),
        F.scaled_dot_product_attention(x, x, x, is_causal=True),
        x.topk(2, 1).values,
        x.cumsum(1), x[torch.arange(batch), torch.full((batch,), seq - 1)], x.clamp(max=seq),
        torch.einsum("bsw,btw->bst", x, x),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_epsilon_of_a_norm_is_that_of_what_it_computes_in(dtype: torch.dtype) -> None:
    x, y = torch.randn(3, 16).to(dtype) * 1e-3, torch.randn(3, 4)
    check(Function(lambda x, y: F.rms_norm(x, (16,))), x, y, tolerance=8e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_pooled_and_resampled_in_f32(dtype: torch.dtype) -> None:
    def body(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return (
            F.avg_pool2d(x, 7),
            F.adaptive_avg_pool2d(x, (3, 5)),
            F.interpolate(x, (15, 33), mode="bilinear"),
        )

    x = (torch.randn(1, 2, 28, 14) + 3).to(dtype)
    results = _interpreted(body, x)
    for ours, meant in zip(results, body(x.double(), x), strict=True):
        error = np.linalg.norm(ours - meant.numpy()) / float(meant.norm())
        assert error < torch.finfo(dtype).eps / 4, meant.shape


def test_bytes_are_resampled_to_the_nearest_of_256_values() -> None:
    """PyTorch rounds the weights, too."""

    def body(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return (
            F.interpolate(x, (7, 9), mode="bilinear"),
            F.interpolate(x, (8, 9), mode="bicubic"),
        )

    x = torch.randint(0, 256, (1, 2, 5, 6), dtype=torch.uint8)
    for ours, meant in zip(_interpreted(body, x), body(x, x), strict=True):
        np.testing.assert_allclose(ours, meant.numpy().astype(int), atol=1)


def _interpreted(body: Body, x: Tensor) -> list[np.ndarray]:
    graph = import_module(Function(body), [x, x])
    return list(interpret(graph, dict.fromkeys(graph.inputs, plain(x))).values())


def test_a_matrix_that_resamples_is_as_wide_as_the_input() -> None:
    x, y = torch.randn(1, 1, 15, 19, dtype=torch.float64), torch.randn(3, 4)
    body = Function(lambda x, y: F.interpolate(x, size=(30, 40), mode="bilinear"))
    check(body, x, y, tolerance=1e-12)


RESAMPLED: tuple[dict[str, Any], ...] = (
    {"mode": "bilinear"},
    {"mode": "bilinear", "align_corners": True},
    {"mode": "bicubic"},
    {"mode": "bicubic", "align_corners": True},
    {"mode": "nearest"},
    {"mode": "nearest-exact"},
)


@pytest.mark.parametrize("sizes", [(4, 6, 9, 5), (9, 7, 3, 7), (2, 5, 8, 11)])
def test_images_are_resampled_to_sizes_that_are_not_fixed(sizes: tuple[int, ...]) -> None:
    def body(x: Tensor, y: Tensor) -> object:
        return (
            *(F.interpolate(x, tuple(y.shape), **kind) for kind in RESAMPLED),
            *(F.interpolate(x, scale_factor=2.0, **kind) for kind in RESAMPLED[:2]),
            *(
                F.interpolate(x, tuple(y.shape), mode=mode, antialias=True, align_corners=align)
                for mode in ("bilinear", "bicubic")
                for align in (False, True)
            ),
            F.interpolate(x, scale_factor=2.0, mode="bicubic", antialias=True),
            F.interpolate(x, (3, 8), mode="bilinear"),
        )

    height, width, rows, columns = (
        torch.export.Dim(name, min=2) for name in ("height", "width", "rows", "columns")
    )
    dynamic = {"x": {2: height, 3: width}, "y": {0: rows, 1: columns}}
    traced = torch.randn(2, 3, 10, 12), torch.randn(7, 13)
    given = torch.randn(2, 3, *sizes[:2]), torch.randn(sizes[2:])
    check(Function(body), *given, traced=traced, dynamic=dynamic)


def test_the_heads_of_an_attention_are_a_fixed_number() -> None:
    """Axes in front whose size is not fixed, as heads in the batch or windows, are the batch."""

    def body(x: Tensor, y: Tensor) -> object:
        wide = x[:, None, None].expand(-1, 2, 3, -1, -1).repeat(1, 1, x.shape[0], 1, 1)
        shares = x @ x.mT
        return (
            F.scaled_dot_product_attention(x, x, x),
            F.scaled_dot_product_attention(x, x, x, attn_mask=shares),
            F.scaled_dot_product_attention(x, x, x, attn_mask=shares[:1] > 0),
            F.scaled_dot_product_attention(wide, wide, wide, attn_mask=shares[0]),
            F.scaled_dot_product_attention(wide, wide, wide, attn_mask=shares[:, None, None]),
        )

    dynamic = {"x": {0: torch.export.Dim("batch", min=2)}, "y": None}
    y, traced = torch.randn(1), torch.randn(5, 4, 6)
    graph = check(Function(body), torch.randn(3, 4, 6), y, traced=(traced, y), dynamic=dynamic)
    queries = [node.inputs[0] for node in graph.nodes() if node.op == "attention"]
    assert [graph.type(q).shape[1] for q in queries] == [1] * 5


@pytest.mark.parametrize("rows", [2, 3, 7])
def test_a_roll_goes_round_more_than_once(rows: int) -> None:
    body = Function(lambda x, y: (x.roll(5, 0), x.roll(-5, 0), x.roll(1, 0), x.roll(-1, 0)))
    dynamic = {"x": {0: torch.export.Dim("rows", min=2)}, "y": None}
    y = torch.randn(3, 4)
    check(body, torch.randn(rows, 2), y, traced=(torch.randn(11, 2), y), dynamic=dynamic)


def test_hypot_of_numbers_whose_squares_are_no_f32(tmp_path: Path) -> None:
    legs = torch.tensor([3e30, 3e-30, 0.0, 3.0, math.inf, 3e38])
    other = torch.tensor([4e30, 4e-30, 0.0, 4.0, -2.0, 1.0])
    path = tmp_path / "hypot.fusec"
    fusec.compile(Function(torch.hypot), path, target="x86-64-v3", example_inputs=(legs, other))
    (result,) = fusec.load(path)(x=legs.numpy(), y=other.numpy()).values()
    right = torch.hypot(legs, other).numpy()
    np.testing.assert_allclose(np.asarray(result, np.float64), right, rtol=1e-6)


def test_dynamic_sizes() -> None:
    batch, seq = torch.export.Dim("batch", max=64), torch.export.Dim("seq", min=5, max=512)
    traced = (torch.randn(2, 8, 6), torch.randn(1))
    torch.manual_seed(5)
    graph = check(
        Function(dynamic_sizes), torch.randn(3, 11, 6), torch.randn(1), traced=traced,
        dynamic={"x": {0: batch, 1: seq}, "y": None},
    )  # fmt: skip
    assert len(graph.symbols) == 2


@pytest.mark.skipif(torch.__version__ < "2.13", reason="PyTorch 2.11 does not export it")
def test_expanded_sizes_are_joined() -> None:
    def repeated(x: Tensor, y: Tensor) -> Tensor:
        return x.unsqueeze(1).expand(-1, 3, -1, -1).reshape(x.shape[0] * 3, *x.shape[1:]) + y

    batch, seq = torch.export.Dim("batch", max=64), torch.export.Dim("seq", min=5, max=512)
    check(
        Function(repeated), torch.randn(3, 11, 6), torch.randn(1),
        traced=(torch.randn(2, 8, 6), torch.randn(1)),
        dynamic={"x": {0: batch, 1: seq}, "y": None},
    )  # fmt: skip


def test_sizes_get_names() -> None:
    batch, seq = torch.export.Dim("batch"), torch.export.Dim("seq", min=3, max=100)
    exported = torch.export.export(
        Function(lambda x, y: x[:, 1:] + y), (torch.randn(2, 5), torch.randn(1)),
        dynamic_shapes={"x": {0: batch, 1: seq}, "y": None}, strict=False,
    )  # fmt: skip
    program = from_exported_program(exported)
    graph = build_graph(
        program, dims={"x": ("batch", "seq")}, ranges={"batch": (1, 7)}, output_names=["z"]
    )
    assert str(graph.type(graph.outputs[0])) == "f32[batch, seq - 1]"
    assert graph.symbols == {"batch": (1, 7), "seq": (3, 100)}
    assert graph.output_names == ["z"]


def test_nodes_say_where_they_come_from() -> None:
    class Inner(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = torch.nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.proj(x))

    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.inner(x)
            return result

    graph = import_module(Outer(), (torch.randn(3, 5),))
    linear, relu = graph.nodes()
    assert (linear.origin.path, linear.origin.op) == ("inner.proj", "aten.linear.default")
    assert relu.origin.path == "inner"
    assert relu.origin.source.startswith("test_aten_ops.py:")
    assert set(graph.parameters) == {"inner.proj.weight", "inner.proj.bias"}


def test_tied_weights_are_one_parameter() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Embedding(7, 4)
            self.b = torch.nn.Linear(4, 7, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.b(self.a(x))
            return result

    graph = check(Tied(), torch.tensor([[1, 6, 3]]))
    assert len(graph.parameters) == 1


def test_an_unknown_operation_stays_opaque() -> None:
    exported = torch.export.export(
        Function(lambda x, y: torch.special.bessel_j0(x) + y[:, :1]),
        (torch.randn(3, 5), torch.randn(3, 4)),
        strict=False,
    )
    program = from_exported_program(exported)
    assert unknown_ops(program) == {"aten.special_bessel_j0.default"}
    graph = build_graph(program)
    (opaque,) = (node for node in graph.nodes() if node.op.startswith("aten."))
    assert opaque.op == "aten.special_bessel_j0.default"
    assert opaque.attrs["args"] == ("%0",)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda x, y: x[x > 0] * 2, "depends on data|selects by a mask"),
        (lambda x, y: torch.nonzero(x), "depends on data"),
        (lambda x, y: x.to(torch.uint16).float(), "`aten.to.dtype` has the dtype `uint16`"),
        (lambda x, y: torch.rand_like(x) + x, "random numbers"),
        (lambda x, y: torch.polar(x, x).sinh().real, "complex"),
        (lambda x, y: torch.linalg.norm(x, 2), "singular values"),
        (in_autocast, "region of autocast"),
        (lambda x, y: (x + 1).resize_(5, 3), "`aten.resize_.default` gives a tensor another size"),
        (lambda x, y: torch.linspace(0, 1j, 5).real + x, "`linspace` of complex numbers"),
        (lambda x, y: F.avg_pool2d(x.long()[None], 2), "`aten.avg_pool2d.default` of i64"),
        (lambda x, y: torch.topk(x.sum(), 0), "`topk` of no element of a scalar"),
        (lambda x, y: x * x.sum().item(), "depends on data"),
        (
            lambda x, y: F.max_pool2d(x[None], 2, return_indices=True)[1],
            "a result of `aten.max_pool.*`, is read, but fusec does not compute it",
        ),
        (
            lambda x, y: torch.cond(x.sum() > 0, lambda a: a.sin(), lambda a: a.cos(), (x,)),
            "control flow: `cond`",
        ),
    ],
)
def test_what_cannot_be_imported(body: Body, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        import_module(Function(body), (torch.randn(3, 5), torch.randn(3, 4)))
    assert caught.value.at is not None


def test_translations_take_what_the_schemas_say() -> None:
    schemas = {
        f"{schema.name.replace('::', '.')}.{schema.overload_name or 'default'}": schema
        for schema in torch._C._jit_get_all_schemas()
    }
    known = [target for target in TABLE if target in schemas]
    assert len(known) > 500
    for target in known:
        arguments = [a for a in schemas[target].arguments if not a.is_out]
        signature = inspect.signature(TABLE[target])
        for required in (False, True):
            kept = [a for a in arguments if not (required and a.has_default_value())]
            positional = [a.name for a in kept if not a.kwarg_only]
            named = {a.name: None for a in kept if a.kwarg_only}
            signature.bind(None, *positional, **named)


def test_a_list_among_results_is_flattened() -> None:
    body = Function(lambda x, y: torch.histogramdd(y, (2, 2, 2, 2))[1][3])
    exported = torch.export.export(body, (torch.randn(3, 5), torch.randn(3, 4)), strict=False)
    program = from_exported_program(exported)
    assert max(len(node.outputs) for node in program.graph.nodes) >= 4


def test_results_are_told_apart_from_later_nodes() -> None:
    """The places of the first median and all of the second were both called `median_1`."""
    body = Function(lambda x, y: (*x.median(1), y.median()))
    graph = check(body, torch.randn(3, 5), torch.randn(3, 4))
    assert [str(graph.type(name)) for name in graph.outputs] == ["f32[3]", "i64[3]", "f32[]"]
