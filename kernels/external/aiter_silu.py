"""AITER's SiLU-and-multiply that quantise their result.

They read gate and up side by side, as one projection gives them.  `scaled_silu_and_mul`, which
takes the scale of a tensor, is left out: it reads it on the host, and a graph has it on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fusec.ir import Node
from fusec.ir.types import dim_attr, int_attr
from fusec.kernels.external.adapter import (
    Adapter,
    Limits,
    Quantising,
    Site,
    as_rows,
    operand,
    value,
    width,
)
from fusec.kernels.external.aiter import ANY_FLOATS, FINITE_MAX, LONGEST, MULTIPLE, PACKED_MAX
from fusec.kernels.external.call import Argument
from fusec.kernels.external.manifest import needs
from fusec.kernels.launch import Call, Storage
from fusec.symbolic import Dim

_STRIDED = ("slice", "transpose", "expand", "flip")
"""Views whose results need not be dense."""


def _side_by_side(site: Site) -> Iterator[str]:
    gate, up = (site.graph.producer(name) for name in site.node.inputs)
    length = width(site)
    if gate is None or up is None or gate.inputs != up.inputs:
        yield "gate and up are not halves of one value"
        return
    whole = site.graph.type(gate.inputs[0])
    if not _is_half(gate, whole.rank, 0) or not _is_half(up, whole.rank, length):
        yield "gate and up are not halves of one value, in this order"
    elif whole.shape[-1] != 2 * length:
        yield f"`%{gate.inputs[0]}: {whole}` holds more than gate and up"
    source = site.graph.producer(gate.inputs[0])
    if source is not None and source.op in _STRIDED:
        yield f"`%{gate.inputs[0]}` is a view whose rows need not be dense"


def _is_half(node: Node, rank: int, start: Dim) -> bool:
    if node.op != "slice" or int_attr(node.attrs, "axis") % rank != rank - 1:
        return False
    return dim_attr(node.attrs, "start") == start and int_attr(node.attrs, "step") == 1


def _even_lanes(site: Site) -> Iterator[str]:
    """A work item holds 24 elements of such rows: no group is whole work items, and none checks."""
    yield from _side_by_side(site)
    if 4096 < width(site) <= 6144:
        yield f"it has no groups in rows of 4097 to 6144 elements; this one has {width(site)}"


def _whole(call: Call) -> tuple[Storage, ...]:
    """Gate and up as one operand, then the results."""
    gate = call.inputs[0]
    both = replace(gate, shape=(*gate.shape[:-1], 2 * gate.shape[-1]))
    return tuple(as_rows(storage) for storage in (both, *call.outputs))


def _silu_and_mul_quant(site: Site) -> tuple[Argument, ...]:
    return (
        operand("out", 1),
        operand("input", 0),
        operand("scale", 2),
        value("group_size", site.scaling.group),
        value("shuffle_scale", site.scaling.layout == "column"),
    )


def _act_mul_fp8(site: Site) -> tuple[Argument, ...]:
    return (
        operand("x", 0),
        value("activation", "silu"),
        value("group_size", site.scaling.group),
        Argument("dtype_quant", "dtype", site.scaling.dtype),
    )


def _act_mul_fp4(site: Site) -> tuple[Argument, ...]:
    """`scaling_mode` is not passed: the function rounds scales to even whatever it says."""
    return operand("x", 0), value("activation", "silu")


def _codes_and_scales(site: Site) -> tuple[int | None, ...]:
    return 1, 2


_ACTIVATION = Limits(dtypes=ANY_FLOATS, weights=())

ACTIVATIONS = (
    Adapter(
        op="silu_mul_quant",
        need=needs(
            "silu_and_mul_quant",
            "hip",
            "(out, input, scale, group_size, limit=0.0, shuffle_scale=False)",
        ),
        limits=Limits(weights=(), longest=LONGEST, multiple=MULTIPLE),
        quantising=Quantising(FINITE_MAX, groups=(64, 128), column=True),
        arguments=_silu_and_mul_quant,
        refuse=_even_lanes,
        operands=_whole,
    ),
    Adapter(
        op="silu_mul_quant",
        need=needs(
            "act_mul_and_fp8_group_quant",
            "triton",
            "(x, activation, group_size, dtype_quant=fp8_dtype)",
        ),
        limits=_ACTIVATION,
        quantising=Quantising(FINITE_MAX, groups=(64, 128)),
        arguments=_act_mul_fp8,
        returned=_codes_and_scales,
        refuse=_side_by_side,
        operands=_whole,
    ),
    Adapter(
        op="silu_mul_quant",
        need=needs(
            "act_mul_and_mxfp4_quant",
            "triton",
            "(x, activation, scaling_mode='even', shuffle=False)",
            "(x, activation, scaling_mode='even', shuffle=False, scale_shuffle_padding=False)",
        ),
        limits=replace(_ACTIVATION, archs=("gfx950",)),
        quantising=Quantising(PACKED_MAX, packed=True, groups=(32,), roundings=("even",)),
        arguments=_act_mul_fp4,
        returned=_codes_and_scales,
        refuse=_side_by_side,
        operands=_whole,
    ),
)
"""In order of preference: the kernel in C++ first."""
