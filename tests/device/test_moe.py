"""Routed experts and routers on the GPU: the problems of the interpreter, and larger ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest
from moe_problems import (
    ATTRS,
    OAI,
    QUANTISED_TOLERANCE,
    ROUTERS,
    SIZES,
    TOLERANCE,
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

from fusec.formats import Granularity, ScaleLayout, Scaling, fp8_scaling, mx_scaling
from fusec.ir.ops.base import Array
from fusec.ir.types import Attr

if TYPE_CHECKING:
    import torch

    from fusec.kernels.launch import Launch

pytestmark = pytest.mark.gpu("sm_90")

LARGE = [(1, 64, 8, 512, 384), (1000, 64, 6, 512, 384), (4096, 8, 2, 256, 320)]


def run(
    op: str, values: Sequence[Value], attrs: dict[str, Attr]
) -> tuple[list[Array], tuple[Array, ...]]:
    """Results on the GPU, and of the reference."""
    from launcher import run as launch_once

    def start(launch: Launch, memory: Sequence[torch.Tensor], sizes: Mapping[str, int]) -> None:
        launch_once(launch, dict(enumerate(memory)), sizes)

    return results(op, values, attrs, "sm_90", start, "cuda")


@pytest.mark.parametrize("routes", ["random", "one", "some"])
@pytest.mark.parametrize("sizes", [*SIZES, *LARGE])
def test_moe(sizes: tuple[int, int, int, int, int], routes: str) -> None:
    attrs: dict[str, Attr] = {**ATTRS, "transposed": False}
    (got,), (want,) = run("moe", plain(experts(*sizes, routes), attrs, "bf16"), attrs)
    agree(got, want, TOLERANCE["bf16"])


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("gated", "layout"), [(True, "split"), (True, "interleaved"), (False, "split")]
)
def test_layouts_of_moe(
    gated: bool, layout: str, biased: bool, transposed: bool, dtype: str
) -> None:
    attrs: dict[str, Attr] = {**ATTRS, "gated": gated, "gate_up_layout": layout}
    attrs |= {"transposed": transposed, "has_bias": biased}
    values = plain(experts(37, 6, 2, 200, 136), attrs, dtype, "i32")
    (got,), (want,) = run("moe", values, attrs)
    agree(got, want, TOLERANCE[dtype])


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu", "relu", "relu2"])
def test_activations_of_moe(activation: str) -> None:
    attrs: dict[str, Attr] = {**ATTRS, "activation": activation, "transposed": False}
    (got,), (want,) = run("moe", plain(experts(4, 4, 2, 64, 32), attrs, "f16"), attrs)
    agree(got, want, TOLERANCE["f16"])


FP8_CASES: list[tuple[Granularity, ScaleLayout, tuple[int, int]]] = [
    ("group", "row", (128, 128)),
    ("group", "column", (128, 128)),
    ("token", "row", (1, 0)),
    ("token", "row", (0, 0)),
    ("token", "row", (64, 128)),
    ("tensor", "row", (0, 0)),
]


@pytest.mark.parametrize("tokens", [3, 600])
@pytest.mark.parametrize(("granularity", "layout", "block"), FP8_CASES)
@pytest.mark.parametrize("attrs", [ATTRS, OAI])
def test_moe_fp8(
    attrs: dict[str, Attr],
    granularity: Granularity,
    layout: ScaleLayout,
    block: tuple[int, int],
    tokens: int,
) -> None:
    group = 128 if granularity == "group" else 0
    scaling = fp8_scaling("f8e4m3fn", granularity, group=group, layout=layout)
    case = experts(tokens, 16, 4, 512, 384, "some")
    attrs = fp8_attrs(case, attrs, scaling, block)
    (got,), (want,) = run("moe_fp8", fp8(case, attrs, scaling, block), attrs)
    agree(got, want, QUANTISED_TOLERANCE)


def mxfp4_results(
    sizes: tuple[int, int, int, int, int],
    attrs: dict[str, Attr],
    scaling: Scaling | None,
    padded: tuple[int, int] | None = None,
) -> tuple[Array, Array]:
    case = experts(*sizes, "some")
    attrs = mxfp4_attrs(attrs, case, scaling, padded)
    (got,), (want,) = run("moe_mxfp4", mxfp4(case, attrs, "bf16", scaling, padded), attrs)
    return got, want


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("attrs", [ATTRS, OAI])
@pytest.mark.parametrize("sizes", [(1, 4, 1, 64, 32), (17, 8, 3, 96, 160), (700, 16, 4, 512, 384)])
def test_moe_mxfp4(
    sizes: tuple[int, int, int, int, int], attrs: dict[str, Attr], native: bool
) -> None:
    """Here the native form is made of bf16 products: what is checked is the kernel around it."""
    got, want = mxfp4_results(sizes, attrs, mx_scaling("f8e4m3fn") if native else None)
    agree(got, want, QUANTISED_TOLERANCE if native else TOLERANCE["bf16"])


@pytest.mark.parametrize("native", [False, True])
def test_padding_changes_nothing(native: bool) -> None:
    """The sizes of gpt-oss, with few tokens and experts."""
    scaling = mx_scaling("f8e4m3fn") if native else None
    sizes = (5, 4, 4, 2880, 2880)
    padded, _ = mxfp4_results(sizes, OAI, scaling, (3072, 3072))
    got, want = mxfp4_results(sizes, OAI, scaling)
    np.testing.assert_array_equal(padded, got)
    agree(got, want, QUANTISED_TOLERANCE if native else TOLERANCE["bf16"])


def test_a_doubled_answer_fails() -> None:
    attrs: dict[str, Attr] = {**ATTRS, "transposed": False}
    (got,), (want,) = run("moe", plain(experts(3, 4, 2, 64, 32), attrs, "bf16"), attrs)
    with pytest.raises(AssertionError):
        agree(2 * got, want, QUANTISED_TOLERANCE)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize(("count", "attrs"), ROUTERS)
def test_router(count: int, attrs: dict[str, Attr], dtype: str) -> None:
    values = routed_logits(count, attrs, dtype)
    (weights, chosen), (wanted, indices) = run("router", values, attrs)
    np.testing.assert_array_equal(chosen, indices)
    agree(weights, wanted, {"f32": 1e-5, "bf16": 1 / 128}[str(attrs["dtype"])])


@pytest.mark.parametrize("attrs", [ROUTERS[0][1], ROUTERS[-3][1]])
def test_a_router_of_equal_and_extreme_scores(attrs: dict[str, Attr]) -> None:
    (weights, chosen), (wanted, indices) = run("router", extreme_logits(attrs), attrs)
    np.testing.assert_array_equal(chosen, indices)
    agree(weights[:4], wanted[:4], 1e-5)
    assert np.isnan(weights[4]).all()
