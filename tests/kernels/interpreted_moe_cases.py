"""Routed experts and their router in Triton, against their references, under the interpreter.

Run by `test_triton.py` in a process of its own, as `interpreted_row_cases.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from mended_interpreter import mend
from moe_problems import (
    ATTRS,
    LIMITED,
    OAI,
    QUANTISED_TOLERANCE,
    ROUTERS,
    SIZES,
    TOLERANCE,
    Experts,
    Value,
    agree,
    experts,
    extreme_logits,
    fp8,
    fp8_attrs,
    mxfp4,
    mxfp4_attrs,
    plain,
    results,
    routed_logits,
)

from fusec import symbolic
from fusec.formats import (
    FP8,
    Granularity,
    ScaleLayout,
    Scaling,
    fp8_scaling,
    mx_scaling,
)
from fusec.ir.ops.base import Array
from fusec.ir.types import Attr
from fusec.kernels.launch import Launch, TritonSource
from fusec.target import target_named

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value")

mend()


def start(launch: Launch, memory: Sequence[torch.Tensor], sizes: Mapping[str, int]) -> None:
    """Run one launch."""
    source = launch.code
    assert isinstance(source, TritonSource)
    function = getattr(importlib.import_module(source.module), source.function)
    grid = tuple(symbolic.evaluate(size, sizes) for size in launch.grid)
    pointers = [memory[storage.buffer] for storage in launch.operands]
    params = [
        each if isinstance(each, float) else symbolic.evaluate(each, sizes)
        for each in launch.params
    ]
    assert len(source.signature) == len(pointers) + len(params)
    function[grid](*pointers, *params, **dict(source.constants))


def run(
    op: str, values: Sequence[Value], attrs: dict[str, Attr], target: str
) -> tuple[list[Array], tuple[Array, ...]]:
    """Results of the kernel under the interpreter, and of the reference."""
    return results(op, values, attrs, target, start)


@pytest.mark.parametrize(
    ("sizes", "routes"),
    [*((sizes, "some") for sizes in SIZES), (SIZES[2], "one"), (SIZES[1], "random")],
)
def test_moe(sizes: tuple[int, int, int, int, int], routes: str) -> None:
    attrs: dict[str, Attr] = {**ATTRS, "transposed": False}
    (got,), (want,) = run("moe", plain(experts(*sizes, routes), attrs, "bf16"), attrs, "gfx950")
    agree(got, want, TOLERANCE["bf16"])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("target", ["gfx950", "sm_90"])
def test_moe_of_wide_floats(target: str, transposed: bool) -> None:
    attrs: dict[str, Attr] = {**ATTRS, "transposed": transposed}
    (got,), (want,) = run("moe", plain(experts(7, 6, 2, 72, 40), attrs, "f32"), attrs, target)
    agree(got, want, TOLERANCE["f32"])


LAYOUTS = [
    (gated, layout, transposed)
    for gated, layout in ((True, "split"), (True, "interleaved"), (False, "split"))
    for transposed in (False, True)
]


@pytest.mark.parametrize(("gated", "layout", "transposed"), LAYOUTS)
@pytest.mark.parametrize("biased", [False, True])
def test_layouts_of_moe(gated: bool, layout: str, transposed: bool, biased: bool) -> None:
    attrs: dict[str, Attr] = {
        **ATTRS,
        "gated": gated,
        "gate_up_layout": layout,
        "transposed": transposed,
        "has_bias": biased,
    }
    values = plain(experts(7, 6, 2, 72, 40), attrs, "f16", "i32")
    (got,), (want,) = run("moe", values, attrs, "gfx942")
    agree(got, want, TOLERANCE["f16"])


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2"])
def test_activations_of_moe(activation: str) -> None:
    attrs: dict[str, Attr] = {**ATTRS, "activation": activation, "gated": activation != "relu2"}
    attrs["transposed"] = False
    values = plain(experts(4, 4, 2, 64, 32), attrs, "f16")
    (got,), (want,) = run("moe", values, attrs, "sm_90")
    agree(got, want, TOLERANCE["f16"])


def test_moe_of_gpt_oss() -> None:
    attrs: dict[str, Attr] = {**OAI, "transposed": True}
    (got,), (want,) = run("moe", plain(experts(5, 8, 4, 96, 64), attrs, "bf16"), attrs, "gfx950")
    agree(got, want, TOLERANCE["bf16"])


def test_a_doubled_answer_fails() -> None:
    attrs: dict[str, Attr] = {**ATTRS, "transposed": False}
    (got,), (want,) = run("moe", plain(experts(3, 4, 2, 64, 32), attrs, "bf16"), attrs, "gfx950")
    with pytest.raises(AssertionError):
        agree(2 * got, want, QUANTISED_TOLERANCE)


# --- 8-bit floats -----------------------------------------------------------------------------


FP8_CASES: list[tuple[dict[str, Attr], Granularity, ScaleLayout, tuple[int, int], str]] = [
    (ATTRS, "group", "row", (128, 128), "gfx942"),
    (OAI, "group", "column", (128, 128), "gfx950"),
    (ATTRS, "token", "row", (1, 0), "gfx950"),
    (OAI, "token", "row", (0, 0), "gfx942"),
    (OAI, "token", "row", (64, 128), "gfx950"),
    (ATTRS, "tensor", "row", (0, 0), "gfx950"),
]


@pytest.mark.parametrize(("attrs", "granularity", "layout", "block", "target"), FP8_CASES)
def test_moe_fp8(
    attrs: dict[str, Attr],
    granularity: Granularity,
    layout: ScaleLayout,
    block: tuple[int, int],
    target: str,
) -> None:
    dtype = target_named(target).fp8
    assert dtype in FP8
    group = 128 if granularity == "group" else 0
    scaling = fp8_scaling(dtype, granularity, group=group, layout=layout)
    sizes = (9, 4, 2, 256, 128) if group or block[1] else (9, 4, 2, 112, 80)
    check_fp8(experts(*sizes, "some"), attrs, scaling, block, target)


@pytest.mark.parametrize("group", [64, 128])
def test_moe_fp8_with_scales_that_are_powers_of_two(group: int) -> None:
    scaling = fp8_scaling("f8e4m3fn", "group", group=group, power_of_two=True)
    check_fp8(experts(5, 3, 2, 128, 256), ATTRS, scaling, (128, 128), "gfx950")


def check_fp8(
    case: Experts, attrs: dict[str, Attr], scaling: Scaling, block: tuple[int, int], target: str
) -> None:
    attrs = fp8_attrs(case, attrs, scaling, block)
    (got,), (want,) = run("moe_fp8", fp8(case, attrs, scaling, block), attrs, target)
    agree(got, want, QUANTISED_TOLERANCE)


# --- 4-bit floats -----------------------------------------------------------------------------


def mxfp4_results(
    case: Experts,
    attrs: dict[str, Attr],
    scaling: Scaling | None,
    target: str,
    padded: tuple[int, int] | None = None,
) -> tuple[Array, Array]:
    attrs = mxfp4_attrs(attrs, case, scaling, padded)
    (got,), (want,) = run("moe_mxfp4", mxfp4(case, attrs, "bf16", scaling, padded), attrs, target)
    return got, want


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("attrs", [ATTRS, OAI, LIMITED])
@pytest.mark.parametrize("sizes", [(1, 4, 1, 64, 32), (17, 5, 3, 96, 160)])
def test_moe_mxfp4(
    sizes: tuple[int, int, int, int, int], attrs: dict[str, Attr], native: bool
) -> None:
    scaling = mx_scaling("f8e4m3fn") if native else None
    got, want = mxfp4_results(experts(*sizes, "some"), attrs, scaling, "gfx950")
    agree(got, want, QUANTISED_TOLERANCE if native else TOLERANCE["bf16"])


@pytest.mark.parametrize(
    ("native", "sizes"),
    [
        (False, (5, 4, 2, 160, 96)),
        (True, (5, 4, 2, 160, 96)),
        pytest.param(False, (1, 2, 1, 2880, 2880), marks=pytest.mark.slow),
        pytest.param(True, (1, 2, 1, 2880, 2880), marks=pytest.mark.slow),
    ],
)
def test_padding_changes_nothing(native: bool, sizes: tuple[int, int, int, int, int]) -> None:
    """The largest sizes are those of gpt-oss."""
    scaling = mx_scaling("f8e4m3fn") if native else None
    wide = (-(-sizes[3] // 256) * 256, -(-sizes[4] // 256) * 256)
    padded, _ = mxfp4_results(experts(*sizes), OAI, scaling, "gfx950", wide)
    got, want = mxfp4_results(experts(*sizes), OAI, scaling, "gfx950")
    np.testing.assert_array_equal(padded, got)
    agree(got, want, QUANTISED_TOLERANCE if native else TOLERANCE["bf16"])


def test_native_products_need_their_arch() -> None:
    with pytest.raises(AssertionError, match="needs gfx950; this is gfx942"):
        mxfp4_results(experts(2, 3, 2, 64, 32), ATTRS, mx_scaling("f8e4m3fn"), "gfx942")


# --- routers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize(("count", "attrs"), ROUTERS)
def test_router(count: int, attrs: dict[str, Attr], dtype: str) -> None:
    values = routed_logits(count, attrs, dtype)
    (weights, chosen), (wanted, indices) = run("router", values, attrs, "gfx950")
    np.testing.assert_array_equal(chosen, indices)
    agree(weights, wanted, {"f32": 1e-5, "bf16": 1 / 128}[str(attrs["dtype"])])


@pytest.mark.parametrize("attrs", [ROUTERS[0][1], ROUTERS[-3][1]])
def test_a_router_of_equal_and_extreme_scores(attrs: dict[str, Attr]) -> None:
    """Equal scores go to the lower index; NaN is chosen before every number."""
    (weights, chosen), (wanted, indices) = run("router", extreme_logits(attrs), attrs, "gfx950")
    np.testing.assert_array_equal(chosen, indices)
    agree(weights[:4], wanted[:4], 1e-5)
    assert np.isnan(weights[4]).all()
