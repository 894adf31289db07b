"""AITER's gated RMSNorms that quantise their result: two in C++ and one in Triton.

All get dense operands: the Triton kernel insists, and before 0.1.14 those in C++ took no others
under the signature that they have today.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from fusec import symbolic
from fusec.ir.types import bool_attr, dims_attr, float_attr, str_attr
from fusec.kernels.external.adapter import (
    Adapter,
    Limits,
    Quantising,
    Site,
    dense,
    operand,
    value,
    width,
)
from fusec.kernels.external.aiter import ANY_FLOATS, FINITE_MAX, GATED_MAX
from fusec.kernels.external.call import Argument
from fusec.kernels.external.manifest import needs
from fusec.kernels.launch import Call, Storage, dense_strides
from fusec.kernels.triton_rows import row_count
from fusec.symbolic import Dim

HEAD = 128
"""Elements of a head that the kernels in C++ are written for; a group is a head."""

MOST_HEADS = 128
"""Heads of a token that the kernel with one scale for each token takes."""

LARGEST_ROW = 65536
"""Bytes of a row that the Triton kernel takes."""


def _heads(site: Site) -> Dim:
    """Heads that lie side by side in a quantised row."""
    if site.attrs.get("shape") is None:
        return 1
    return symbolic.floor_divide(dims_attr(site.attrs, "shape")[-1], width(site))


# --- in C++ ---------------------------------------------------------------------------------


def _silu_after_norm(site: Site) -> Iterator[str]:
    if width(site) != HEAD:
        yield f"a head has {width(site)} elements; it takes {HEAD}"
    if str_attr(site.attrs, "activation") != "silu":
        yield f"its gate is silu, not {site.attrs['activation']}"
    if not bool_attr(site.attrs, "norm_before_gate"):
        yield "it norms before the gate, not after it"
    if not isinstance(_heads(site), int):
        yield "the number of heads is not known at compile time"


def _few_heads(site: Site) -> Iterator[str]:
    yield from _silu_after_norm(site)
    heads = _heads(site)
    if isinstance(heads, int) and heads > MOST_HEADS:
        yield f"a token has {heads} heads; it takes up to {MOST_HEADS}"


def _gated(site: Site) -> tuple[Argument, ...]:
    return (
        operand("out", site.result(0)),
        operand("scale", site.result(1)),
        operand("x", 0),
        operand("z", 2),
        operand("weight", 1),
        value("epsilon", float_attr(site.attrs, "eps")),
    )


def _gated_groups(site: Site) -> tuple[Argument, ...]:
    return (
        *_gated(site),
        value("group_size", site.scaling.group),
        value("transpose_scale", site.scaling.layout == "column"),
    )


def _heads_apart(call: Call) -> tuple[Storage, ...]:
    """x and gate as [tokens, heads, elements of a head]."""
    x, weight, gate = call.inputs
    length = x.shape[-1]
    row = call.output_type().shape[-1]
    heads = symbolic.floor_divide(row, length)
    shape = (symbolic.floor_divide(row_count(x), heads), heads, length)
    apart = [replace(each, shape=shape, strides=dense_strides(shape)) for each in (x, gate)]
    return (apart[0], weight, apart[1], *call.outputs)


# --- in Triton ------------------------------------------------------------------------------


def _fits(site: Site) -> Iterator[str]:
    length, scaling = width(site), site.scaling
    most = LARGEST_ROW // site.type(0).element.itemsize
    if length > most:
        yield f"a head has {length} elements; it takes up to {most}"
    if scaling.granularity == "group" and length % scaling.group:
        yield f"groups of {scaling.group} elements do not divide a head of {length}"
    if scaling.granularity == "token" and _heads(site) != 1:
        yield "it has a scale for each head, not one for all heads of a token"


def _gated_triton(site: Site) -> tuple[Argument, ...]:
    scaling = site.scaling
    smallest = scaling.floor
    rounds = scaling.rounding == "up"
    if rounds:
        # It applies the floor after rounding, fusec before it: a rounded floor is the same.
        smallest = 2.0 ** math.ceil(math.log2(smallest))
    return (
        operand("x", 0),
        operand("weight", 1),
        value("bias", None),
        operand("z", 2),
        value("eps", float_attr(site.attrs, "eps")),
        value("norm_before_gate", bool_attr(site.attrs, "norm_before_gate")),
        value("use_ue8m0", rounds),
        value("activation", str_attr(site.attrs, "activation")),
        Argument("out_dtype", "dtype", scaling.dtype),
        value("fp8_min", -scaling.maximum),
        value("fp8_max", scaling.maximum),
        value("fp8_min_scaling_factor", smallest),
        value("group_size", scaling.group or None),
    )


GATED_NORMS = (
    Adapter(
        op="gated_rms_norm_quant",
        need=needs(
            "fused_rms_gated_fp8_group_quant",
            "triton",
            "(x, weight, bias, z, eps, *, norm_before_gate=True, use_ue8m0=False,"
            " activation='silu', out_dtype=None, fp8_min=None, fp8_max=None,"
            " fp8_min_scaling_factor=None, group_size=None)",
        ),
        limits=Limits(dtypes=ANY_FLOATS, rows=(0, 2), same_dtype=False),
        quantising=Quantising(
            GATED_MAX,
            sets_maximum=True,
            granularities=("token", "group"),
            groups=(32, 64, 128, 256),
            roundings=("none", "up"),
        ),
        arguments=_gated_triton,
        returned=lambda site: (site.result(0), site.result(1)),
        refuse=_fits,
        layouts=dense,
    ),
    Adapter(
        op="gated_rms_norm_quant",
        need=needs(
            "gated_rmsnorm_fp8_group_quant",
            "hip",
            "(out, scale, x, z, weight, epsilon, group_size, transpose_scale=False)",
        ),
        limits=Limits(rows=(0, 2)),
        quantising=Quantising(FINITE_MAX, groups=(HEAD,), column=True),
        arguments=_gated_groups,
        refuse=_silu_after_norm,
        operands=_heads_apart,
        layouts=dense,
    ),
    Adapter(
        op="gated_rms_norm_quant",
        need=needs(
            "gated_rmsnorm_fp8_per_token_quant", "hip", "(out, scale, x, z, weight, epsilon)"
        ),
        limits=Limits(rows=(0, 2)),
        quantising=Quantising(FINITE_MAX, granularities=("token",)),
        arguments=_gated,
        refuse=_few_heads,
        operands=_heads_apart,
        layouts=dense,
    ),
)
"""In order of preference: the Triton kernel takes every head, both gates and any maximum."""
