"""Matrix products, convolutions and triangular solves."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from fusec import symbolic
from fusec.diagnostics import VerifyError
from fusec.ir.ops.base import Array, Types, arity, define, float_operand, result_array, same_dtype
from fusec.ir.types import Attrs, TensorType, bool_attr, broadcast, int_attr, ints_attr
from fusec.symbolic import Dim


def _infer_matmul(types: Types, attrs: Attrs) -> Types:
    arity(types, 2)
    a, b = types
    if a.rank < 2 or b.rank < 2:
        raise VerifyError(f"`{a}` and `{b}` are not batches of matrices")
    if a.shape[-1] != b.shape[-2]:
        raise VerifyError(f"`{a}` and `{b}` do not multiply")
    batch = broadcast(a.shape[:-2], b.shape[:-2])
    return (TensorType(same_dtype(types), (*batch, a.shape[-2], b.shape[-1])),)


def infer_linear(types: Types, attrs: Attrs) -> Types:
    """x [..., K], weight [N, K], bias [N]; with `dtype` f32 the sums are given unrounded."""
    arity(types, 2, 3)
    x, weight = types[:2]
    if weight.rank != 2 or x.rank < 1 or x.shape[-1] != weight.shape[1]:
        raise VerifyError(f"`{x}` does not multiply weight `{weight}`")
    if len(types) == 3 and types[2].shape != weight.shape[:1]:
        raise VerifyError(f"bias `{types[2]}` does not fit weight `{weight}`")
    dtype = same_dtype(types)
    wide = attrs.get("dtype", dtype)
    if wide not in (dtype, "f32"):
        raise VerifyError(f"a product of {dtype} is not given in {wide}")
    return (TensorType(str(wide), (*x.shape[:-1], weight.shape[0])),)


def _infer_grouped_mm(types: Types, attrs: Attrs) -> Types:
    """x [T, K], weights [E, K, N], end offsets [E]: rows up to offsets[e] use weight e."""
    arity(types, 3)
    x, weight, offsets = types
    if x.rank != 2 or weight.rank != 3 or x.shape[1] != weight.shape[1]:
        raise VerifyError(f"`{x}` does not multiply weights `{weight}`")
    if offsets.shape != weight.shape[:1]:
        raise VerifyError(f"offsets `{offsets}` do not fit weights `{weight}`")
    return (TensorType(same_dtype(types[:2]), (x.shape[0], weight.shape[2])),)


def infer_conv(types: Types, attrs: Attrs) -> Types:
    """x [B, C, spatial...], weight [O, C/groups, kernel...] [, bias [O]]: [B, O, spatial...]."""
    arity(types, 2, 3)
    x, weight = types[:2]
    stride, padding, dilation = (ints_attr(attrs, key) for key in ("stride", "padding", "dilation"))
    groups, spatial = int_attr(attrs, "groups"), x.rank - 2
    if spatial < 1 or weight.rank != x.rank or x.shape[1] != weight.shape[1] * groups:
        raise VerifyError(f"`{x}` does not convolve with weight `{weight}` in {groups} groups")
    if not len(stride) == len(padding) == len(dilation) == spatial:
        raise VerifyError(f"a convolution over {spatial} axes needs as many strides and paddings")
    shape: list[Dim] = [x.shape[0], weight.shape[0]]
    for axis in range(spatial):
        reach = (weight.shape[axis + 2] - 1) * dilation[axis] + 1
        room = x.shape[axis + 2] + 2 * padding[axis] - reach
        shape.append(symbolic.floor_divide(room, stride[axis]) + 1)
    return (TensorType(same_dtype(types), tuple(shape)),)


def _infer_solve(types: Types, attrs: Attrs) -> Types:
    arity(types, 2)
    a, b = types
    if a.rank < 2 or a.shape[-1] != a.shape[-2]:
        raise VerifyError(f"`{a}` is not a batch of square matrices")
    float_operand(a)
    batch = broadcast(a.shape[:-2], b.shape[:-2])
    return (TensorType(same_dtype(types), (*batch, *b.shape[-2:])),)


def _matmul(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    return (result_array(np.matmul(*arrays), types[0]),)


def multiply_linear(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    """The reference of `linear`."""
    product = arrays[0] @ arrays[1].T
    return (product if len(arrays) == 2 else product + arrays[2],)


def _grouped_mm(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    x, weights, offsets = arrays
    result = np.zeros((x.shape[0], weights.shape[2]))
    begin = 0
    for weight, end in zip(weights, offsets, strict=True):
        result[begin:end] = x[begin:end] @ weight
        begin = int(end)
    return (result,)


def convolve(
    x: Array,
    weight: Array,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Array:
    """Cross-correlation of x [B, C, spatial...] with weight [O, C/groups, kernel...]."""
    spatial = x.ndim - 2
    x = np.pad(x, [(0, 0), (0, 0), *((size, size) for size in padding)])
    kernel = weight.shape[2:]
    out = [
        (x.shape[axis + 2] - (kernel[axis] - 1) * dilation[axis] - 1) // stride[axis] + 1
        for axis in range(spatial)
    ]
    result = np.zeros((x.shape[0], weight.shape[0], *out))
    grouped = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
    filters = weight.reshape(groups, -1, *weight.shape[1:])
    view = result.reshape(x.shape[0], groups, -1, *out)
    for tap in itertools.product(*map(range, kernel)):
        window: list[Any] = [...]
        for axis in range(spatial):
            start, step = tap[axis] * dilation[axis], stride[axis]
            window.append(slice(start, start + (out[axis] - 1) * step + 1, step))
        weights: Any = (..., *tap)
        view += np.einsum("bgc...,goc->bgo...", grouped[tuple(window)], filters[weights])
    return result


def conv(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    """The reference of `conv`."""
    stride, padding, dilation = (ints_attr(attrs, key) for key in ("stride", "padding", "dilation"))
    groups = int_attr(attrs, "groups")
    result = convolve(arrays[0], arrays[1], stride, padding, dilation, groups)
    if len(arrays) == 3:
        result += arrays[2].reshape(-1, *(1,) * (result.ndim - 2))
    return (result,)


def _solve(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    a, b = arrays
    a = np.triu(a) if bool_attr(attrs, "upper") else np.tril(a)
    if bool_attr(attrs, "unit_diagonal"):
        a = a * (1 - np.eye(a.shape[-1])) + np.eye(a.shape[-1])
    return (np.linalg.solve(a, b),)


define("matmul", _infer_matmul, _matmul)
define("linear", infer_linear, multiply_linear)
define("grouped_mm", _infer_grouped_mm, _grouped_mm)
define("conv", infer_conv, conv)
define("solve_triangular", _infer_solve, _solve)
