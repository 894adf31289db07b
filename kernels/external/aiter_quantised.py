"""AITER's norms that quantise their result.

The largest element of a group counts as at least 1e-10.  fusec's own kernels have a floor for
scales instead, 1/(512 * maximum); groups so small that it shows come out finer here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fusec.ir.types import bool_attr, float_attr, str_attr
from fusec.kernels.external.adapter import (
    Adapter,
    Limits,
    Quantising,
    Site,
    gemma_norm,
    operand,
    rows_of,
    value,
    width,
)
from fusec.kernels.external.aiter import ANY_FLOATS, FINITE_MAX, LONGEST, MULTIPLE, PACKED_MAX
from fusec.kernels.external.call import Argument
from fusec.kernels.external.manifest import Form, needs
from fusec.kernels.launch import Call, Storage, dense_strides
from fusec.kernels.registry import Layouts, all_contiguous
from fusec.kernels.triton_rows import row_layouts

_ANY_FLOATS = Limits(dtypes=ANY_FLOATS, same_dtype=False)
_ANY_FLOATS_ADDED = Limits(dtypes=ANY_FLOATS, rows=(0, 1), weights=(2,), same_dtype=False)
_TWO_ROWS = Limits(rows=(0, 2), weights=(1, 3), longest=LONGEST, multiple=MULTIPLE)


# --- RMSNorm in C++ -------------------------------------------------------------------------


def _uneven_lanes(site: Site) -> Iterator[str]:
    """A work item holds 24 elements of such rows, so that no group is whole work items."""
    length = width(site)
    if site.scaling.granularity == "group" and 4096 < length <= 6144:
        yield f"it has no groups in rows of 4097 to 6144 elements; this one has {length}"


def _group(site: Site) -> tuple[Argument, ...]:
    """A group of 0 is the row; what is called shuffled is the scales of each group together."""
    return (
        value("group_size", site.scaling.group),
        value("shuffle_scale", site.scaling.layout == "column"),
    )


def _rmsnorm_quant(site: Site) -> tuple[Argument, ...]:
    return (
        operand("out", site.result(0)),
        operand("input", 0),
        operand("scale", site.result(1)),
        operand("weight", 1),
        value("epsilon", float_attr(site.attrs, "eps")),
        *_group(site),
        *gemma_norm(site),
    )


def _add_rmsnorm_quant(site: Site) -> tuple[Argument, ...]:
    return (
        operand("out", site.result(0)),
        operand("input", 0),
        operand("residual_in", 1),
        operand("residual_out", site.result(2)),
        operand("scale", site.result(1)),
        operand("weight", 2),
        value("epsilon", float_attr(site.attrs, "eps")),
        *_group(site),
        *gemma_norm(site),
    )


_NORM_FP8 = Quantising(FINITE_MAX, granularities=("token", "group"), groups=(64, 128), column=True)


# --- two RMSNorms in C++ --------------------------------------------------------------------


def _only_first(site: Site) -> Iterator[str]:
    if str_attr(site.attrs, "quantises") != "first":
        yield "it quantises the first of the two norms only"


def _two_norms(site: Site) -> tuple[Argument, ...]:
    return (
        operand("q_out_quantized", site.result(0)),
        operand("q_out_scale", site.result(1)),
        operand("q", 0),
        operand("q_weight", 1),
        value("q_epsilon", float_attr(site.attrs, "eps1")),
        operand("k_out", site.result(2)),
        operand("k", 2),
        operand("k_weight", 3),
        value("k_epsilon", float_attr(site.attrs, "eps2")),
        *gemma_norm(site),
    )


def _two_norms_in_groups(site: Site) -> tuple[Argument, ...]:
    return (
        *_two_norms(site),
        value("group_size", site.scaling.group),
        value("transpose_scale", site.scaling.layout == "column"),
    )


def _scales_as_rows(call: Call) -> tuple[Storage, ...]:
    """Scales [rows, groups] whatever their layout: the function checks the shape alone."""
    operands = list(rows_of(call))
    index = len(call.inputs) + 1
    shape = operands[index].shape
    if call.attrs["scale_layout"] == "column":
        shape = shape[::-1]
    operands[index] = replace(operands[index], shape=shape, strides=dense_strides(shape))
    return tuple(operands)


def _rows_where_strided(form: Form) -> Layouts:
    """The first releases of the function take dense operands only; they lack `gemma_norm`."""
    return row_layouts if "gemma_norm" in form.signature.names else all_contiguous


_OPTIONAL = (
    "q_out_unquantized=None, k_out=None, q_res_out=None, k=None, k_weight=None, k_epsilon=None,"
    " q_residual=None"
)


# --- RMSNorm in Triton ----------------------------------------------------------------------


def _first_norm(site: Site, weight: int) -> tuple[Argument, ...]:
    eps = "eps1" if site.node.op.startswith("dual") else "eps"
    first = (
        operand("inp1", 0),
        operand("inp1_weight", weight),
        value("inp1_epsilon", float_attr(site.attrs, eps)),
    )
    kept = value("output_unquantized_inp1", bool_attr(site.attrs, "with_plain"))
    return (*first, Argument("dtype_quant", "dtype", site.scaling.dtype), kept)


def _triton_group(site: Site, weight: int) -> tuple[Argument, ...]:
    return (
        *_first_norm(site, weight),
        value("group_size", site.scaling.group),
        value("transpose_scale", site.scaling.layout == "column"),
    )


def _triton_rms(site: Site) -> tuple[Argument, ...]:
    return _triton_group(site, 1)


def _triton_add_rms(site: Site) -> tuple[Argument, ...]:
    return (*_triton_group(site, 2), operand("res1", 1))


def _triton_dual_rms(site: Site) -> tuple[Argument, ...]:
    return (
        *_triton_group(site, 1),
        operand("inp2", 2),
        operand("inp2_weight", 3),
        value("inp2_epsilon", float_attr(site.attrs, "eps2")),
    )


def _static_rms(site: Site) -> tuple[Argument, ...]:
    return (*_first_norm(site, 1), operand("inp1_scale", 2))


def _static_add_rms(site: Site) -> tuple[Argument, ...]:
    return (*_first_norm(site, 2), operand("inp1_scale", 3), operand("res1", 1))


def _returned(site: Site) -> tuple[int | None, ...]:
    """Codes, scales unless given, then the plain result, the second norm and the sum, or `None`."""
    kept = bool_attr(site.attrs, "with_plain")
    scales = 0 if bool_attr(site.attrs, "has_scale") else 1
    plain = site.result(1 + scales) if kept else None
    rest = site.result(1 + scales + kept)
    second = rest if site.node.op.startswith("dual") else None
    total = rest if site.node.op.startswith("add") else None
    return (*map(site.result, range(1 + scales)), plain, second, total)


_TRITON_FP8 = Quantising(FINITE_MAX, groups=(64, 128), column=True, plain=True)
_STATIC_FP8 = Quantising(FINITE_MAX, granularities=("tensor",), given_scale=True, plain=True)
_TRITON_GROUPS = (
    "(inp1, inp1_weight, inp1_epsilon, inp2=None, inp2_weight=None, inp2_epsilon=None,"
    " group_size=128, dtype_quant=fp8_dtype, res1=None, output_unquantized_inp1=False,"
    " transpose_scale=False"
)
_TRITON_RMS = needs(
    "fused_rms_fp8_group_quant",
    "triton",
    f"{_TRITON_GROUPS})",
    f"{_TRITON_GROUPS}, is_x_scale_strided=False)",
)
_STATIC_TENSOR = (
    "(inp1, inp1_weight, inp1_epsilon, inp1_scale, inp2=None, inp2_weight=None,"
    " inp2_epsilon=None, dtype_quant=fp8_dtype, res1=None, output_unquantized_inp1=False"
)
_STATIC_RMS = needs(
    "fused_rms_fp8_per_tensor_static_quant",
    "triton",
    f"{_STATIC_TENSOR})",
    f"{_STATIC_TENSOR}, rmsnorm_convert_to_inp1_type=False)",
)


# --- RMSNorm to 4-bit floats in Triton ------------------------------------------------------


def _packed(site: Site, weight: int) -> tuple[Argument, ...]:
    return (
        operand("x1", 0),
        operand("x1_weight", weight),
        value("x1_epsilon", float_attr(site.attrs, "eps")),
    )


def _packed_rms(site: Site) -> tuple[Argument, ...]:
    return _packed(site, 1)


def _packed_add_rms(site: Site) -> tuple[Argument, ...]:
    return (*_packed(site, 2), operand("res1", 1))


def _packed_returned(site: Site) -> tuple[int | None, ...]:
    """As the other Triton norms; the first releases never return the plain result."""
    codes, scales, plain, second, total = _returned(site)
    if site.takes("output_unquantized_inp1"):
        return codes, scales, plain, second, total
    return codes, scales, second, total


_FP4 = Quantising(PACKED_MAX, packed=True, groups=(32,), roundings=("even",))
_PACKED = (
    "(x1, x1_weight, x1_epsilon, x2=None, x2_weight=None, x2_epsilon=0.0, res1=None,"
    " shuffle=False, scale_shuffle_padding=False"
)
_PACKED_RMS = needs(
    "fused_rms_mxfp4_quant",
    "triton",
    f"{_PACKED})",
    f"{_PACKED}, output_unquantized_inp1=False)",
    f"{_PACKED}, output_unquantized_inp1=False, inargs='auto')",
)


QUANTISED_NORMS = (
    Adapter(
        op="rms_norm_quant",
        need=needs(
            "rmsnorm_quant",
            "hip",
            "(out, input, scale, weight, epsilon, group_size=0, shuffle_scale=False)",
            "(out, input, scale, weight, epsilon, group_size=0, shuffle_scale=False,"
            " gemma_norm=False)",
        ),
        limits=Limits(longest=LONGEST, multiple=MULTIPLE),
        quantising=_NORM_FP8,
        arguments=_rmsnorm_quant,
        refuse=_uneven_lanes,
    ),
    Adapter(
        op="rms_norm_quant",
        need=_TRITON_RMS,
        limits=_ANY_FLOATS,
        quantising=_TRITON_FP8,
        arguments=_triton_rms,
        returned=_returned,
    ),
    Adapter(
        op="rms_norm_quant",
        need=_STATIC_RMS,
        limits=_ANY_FLOATS,
        quantising=_STATIC_FP8,
        arguments=_static_rms,
        returned=_returned,
    ),
    Adapter(
        op="rms_norm_quant",
        need=_PACKED_RMS,
        limits=replace(_ANY_FLOATS, archs=("gfx950",)),
        quantising=_FP4,
        arguments=_packed_rms,
        returned=_packed_returned,
    ),
    Adapter(
        op="add_rms_norm_quant",
        need=needs(
            "add_rmsnorm_quant",
            "hip",
            "(out, input, residual_in, residual_out, scale, weight, epsilon, group_size=0,"
            " shuffle_scale=False)",
            "(out, input, residual_in, residual_out, scale, weight, epsilon, group_size=0,"
            " shuffle_scale=False, gemma_norm=False)",
        ),
        limits=Limits(rows=(0, 1), weights=(2,), longest=LONGEST, multiple=MULTIPLE),
        quantising=_NORM_FP8,
        arguments=_add_rmsnorm_quant,
        refuse=_uneven_lanes,
    ),
    Adapter(
        op="add_rms_norm_quant",
        need=_TRITON_RMS,
        limits=_ANY_FLOATS_ADDED,
        quantising=_TRITON_FP8,
        arguments=_triton_add_rms,
        returned=_returned,
    ),
    Adapter(
        op="add_rms_norm_quant",
        need=_STATIC_RMS,
        limits=_ANY_FLOATS_ADDED,
        quantising=_STATIC_FP8,
        arguments=_static_add_rms,
        returned=_returned,
    ),
    Adapter(
        op="add_rms_norm_quant",
        need=_PACKED_RMS,
        limits=replace(_ANY_FLOATS_ADDED, archs=("gfx950",)),
        quantising=_FP4,
        arguments=_packed_add_rms,
        returned=_packed_returned,
    ),
    Adapter(
        op="dual_rms_norm_quant",
        need=needs(
            "fused_qk_rmsnorm_per_token_quant",
            "hip",
            "(q_out_quantized, q_out_scale, q, q_weight, q_epsilon,"
            f" {_OPTIONAL}, gemma_norm=False)",
        ),
        limits=_TWO_ROWS,
        quantising=Quantising(FINITE_MAX, granularities=("token",)),
        arguments=_two_norms,
        refuse=_only_first,
    ),
    Adapter(
        op="dual_rms_norm_quant",
        need=needs(
            "fused_qk_rmsnorm_group_quant",
            "hip",
            "(q_out_quantized, q_out_scale, q, q_weight, q_epsilon,"
            f" {_OPTIONAL}, group_size=128, transpose_scale=False)",
            "(q_out_quantized, q_out_scale, q, q_weight, q_epsilon,"
            f" {_OPTIONAL}, group_size=128, transpose_scale=False, gemma_norm=False)",
            "(q_out_quantized=None, q_out_scale=None, q=None, q_weight=None, q_epsilon=1e-06,"
            f" {_OPTIONAL}, group_size=128, transpose_scale=False, gemma_norm=False)",
        ),
        limits=_TWO_ROWS,
        quantising=Quantising(FINITE_MAX, groups=(64, 128), column=True),
        arguments=_two_norms_in_groups,
        refuse=_only_first,
        operands=_scales_as_rows,
        layouts=_rows_where_strided,
    ),
    Adapter(
        op="dual_rms_norm_quant",
        need=_TRITON_RMS,
        limits=Limits(dtypes=ANY_FLOATS, rows=(0, 2), weights=(1, 3), same_dtype=False),
        quantising=replace(_TRITON_FP8, plain=False),
        arguments=_triton_dual_rms,
        returned=_returned,
        refuse=_only_first,
    ),
)
"""In order of preference for each operation: kernels in C++ first."""
