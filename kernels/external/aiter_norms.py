"""AITER's norms that do not quantise."""

from __future__ import annotations

from fusec.ir.types import float_attr
from fusec.kernels.external.adapter import Adapter, Limits, Site, dense, gemma_norm, operand, value
from fusec.kernels.external.aiter import ANY_FLOATS, LONGEST, MULTIPLE
from fusec.kernels.external.call import Argument
from fusec.kernels.external.manifest import needs


def _eps(site: Site, parameter: str = "epsilon", attribute: str = "eps") -> Argument:
    return value(parameter, float_attr(site.attrs, attribute))


def _rmsnorm(site: Site) -> tuple[Argument, ...]:
    operands = (operand("out", 2), operand("input", 0), operand("weight", 1))
    return (*operands, _eps(site), *gemma_norm(site))


def _rmsnorm2d_fwd(site: Site) -> tuple[Argument, ...]:
    return operand("input", 0), operand("weight", 1), _eps(site)


def _add_rmsnorm(site: Site) -> tuple[Argument, ...]:
    return (
        operand("out", 3),
        operand("input", 0),
        operand("residual_in", 1),
        operand("residual_out", 4),
        operand("weight", 2),
        _eps(site),
        *gemma_norm(site),
    )


def _add_rmsnorm_pad(site: Site) -> tuple[Argument, ...]:
    """Pads nothing: the rows that are returned are as long as those that are given."""
    return operand("x", 0), operand("weight", 2), _eps(site), operand("res", 1)


def _fused_qk_rmsnorm(site: Site) -> tuple[Argument, ...]:
    """Both forms: with six parameters it returns the results, with eight it fills them in."""
    results = (operand("q_out", 4), operand("k_out", 5)) if site.takes("q_out") else ()
    return (
        *results,
        operand("q", 0),
        operand("q_weight", 1),
        _eps(site, "q_eps", "eps1"),
        operand("k", 2),
        operand("k_weight", 3),
        _eps(site, "k_eps", "eps2"),
    )


def _both_norms(site: Site) -> tuple[int | None, ...]:
    return () if site.takes("q_out") else (4, 5)


NORMS = (
    Adapter(
        op="rms_norm",
        need=needs(
            "rmsnorm",
            "hip",
            "(out, input, weight, epsilon)",
            "(out, input, weight, epsilon, gemma_norm=False)",
        ),
        limits=Limits(longest=LONGEST, multiple=MULTIPLE),
        arguments=_rmsnorm,
    ),
    Adapter(
        op="rms_norm",
        need=needs(
            "rmsnorm2d_fwd",
            "hip",
            "(input, weight, epsilon)",
            "(input, weight, epsilon, use_model_sensitive_rmsnorm=0)",
        ),
        limits=Limits(longest=LONGEST, multiple=MULTIPLE),
        arguments=_rmsnorm2d_fwd,
        returned=lambda site: (2,),
        layouts=dense,
    ),
    Adapter(
        op="add_rms_norm",
        need=needs(
            "add_rmsnorm",
            "hip",
            "(out, input, residual_in, residual_out, weight, epsilon)",
            "(out, input, residual_in, residual_out, weight, epsilon, gemma_norm=False)",
        ),
        limits=Limits(rows=(0, 1), weights=(2,), longest=LONGEST, multiple=MULTIPLE),
        arguments=_add_rmsnorm,
    ),
    Adapter(
        op="add_rms_norm",
        need=needs(
            "rmsnorm2d_fwd_with_add",
            "hip",
            "(out, input, residual_in, residual_out, weight, epsilon)",
            "(out, input, residual_in, residual_out, weight, epsilon,"
            " use_model_sensitive_rmsnorm=0)",
            "(out, input, residual_in, residual_out, weight, epsilon,"
            " gemma_norm=False, use_model_sensitive_rmsnorm=0)",
        ),
        limits=Limits(rows=(0, 1), weights=(2,), longest=LONGEST, multiple=MULTIPLE),
        arguments=_add_rmsnorm,
        layouts=dense,
    ),
    Adapter(
        op="add_rms_norm",
        need=needs(
            "fused_add_rmsnorm_pad", "triton", "(x, weight, epsilon, res=None, x_pad_to_multiple=0)"
        ),
        limits=Limits(dtypes=ANY_FLOATS, rows=(0, 1), weights=(2,), same_dtype=False),
        arguments=_add_rmsnorm_pad,
        returned=lambda site: (3, 4),
    ),
    Adapter(
        op="dual_rms_norm",
        need=needs(
            "fused_qk_rmsnorm",
            "hip",
            "(q, q_weight, q_eps, k, k_weight, k_eps)",
            "(q_out, q, q_weight, q_eps, k_out, k, k_weight, k_eps)",
        ),
        limits=Limits(rows=(0, 2), weights=(1, 3), longest=LONGEST, multiple=MULTIPLE),
        arguments=_fused_qk_rmsnorm,
        returned=_both_norms,
    ),
)
"""In order of preference for each operation.

From 16384 rows `fused_qk_rmsnorm` itself calls two norms instead."""
