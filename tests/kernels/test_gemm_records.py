"""Records of products in narrow formats: what they refuse, and the instructions they become."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from gemm_problems import FN, Made, Problem, make_rows
from gpu_cases import GpuCase, gpu_cases

from fusec.formats import Scaling, fp8_scaling, mx_scaling
from fusec.ir import Graph, TensorType
from fusec.ir.types import Attr
from fusec.kernels.launch import TritonSource
from fusec.kernels.registry import choose, kernels
from fusec.kernels.triton_gemm import Tile, splits_of
from fusec.link.gpu_checks import fitted
from fusec.link.triton_build import build_triton
from fusec.symbolic import symbol
from fusec.target import target_named

GROUP = fp8_scaling(FN, "group", group=128)


def problem(op: str, target: str, scaling: Scaling | None, **more: Any) -> Made:
    given: dict[str, Any] = {"block": (1, 32), **more}
    made = Problem(op, target, (4,), 64, 256, scaling, **given)
    return make_rows(made, (4,), np.random.default_rng(0))


def reasons(made: Made) -> dict[str, str]:
    choice = choose(made.graph, made.node, made.target)
    assert choice.kernel is None
    return {refused.kernel: refused.reason for refused in choice.refused}


ARCHES = [
    ("fp8_linear", "gfx942", mx_scaling(FN), "fp8_linear.triton_scaled", "mxfp8.arch"),
    ("fp8_linear", "sm_90", mx_scaling(FN), "fp8_linear.triton_scaled", "mxfp8.arch"),
    ("mxfp4_linear", "gfx942", mx_scaling(FN), "mxfp4_linear.triton_scaled", "mxfp4.arch"),
    ("mxfp4_linear", "sm_90", mx_scaling("f4e2m1x2"), "mxfp4_linear.triton_scaled", "mxfp4.arch"),
]


@pytest.mark.parametrize(("op", "target", "scaling", "kernel", "code"), ARCHES)
def test_scaled_matrix_units_are_those_of_gfx950(
    op: str, target: str, scaling: Scaling, kernel: str, code: str
) -> None:
    reason = reasons(problem(op, target, scaling))[kernel]
    assert reason == f"{code}: native scaled MFMA needs gfx950; this is {target}"
    there = problem(op, "gfx950", scaling)
    chosen = choose(there.graph, there.node, there.target).kernel
    assert chosen is not None and chosen.name == kernel


@pytest.mark.parametrize(
    ("target", "dtype"), [("gfx942", FN), ("gfx950", "f8e4m3fnuz"), ("sm_90", "f8e4m3fnuz")]
)
def test_matrix_units_take_their_own_fp8(target: str, dtype: str) -> None:
    scaling = fp8_scaling(dtype, "group", group=128)
    made = problem("fp8_linear", target, scaling, block=(128, 128))
    assert reasons(made)["fp8_linear.triton"].startswith("fp8.arch: ")


def test_scaled_products_take_e4m3_codes() -> None:
    scaling = dataclasses.replace(mx_scaling(FN), dtype="f8e5m2")
    made = problem("mxfp4_linear", "gfx950", scaling)
    assert reasons(made)["mxfp4_linear.triton_scaled"].startswith("mxfp4.arch: scaled products")


@pytest.mark.parametrize(
    ("scaling", "block"),
    [
        (fp8_scaling(FN, "group", group=16), (128, 128)),
        (GROUP, (128, 48)),
        (dataclasses.replace(GROUP, scale_dtype="e8m0", rounding="even"), (128, 128)),
    ],
)
def test_groups_that_no_matrix_unit_takes(scaling: Scaling, block: tuple[int, int]) -> None:
    made = problem("fp8_linear", "gfx950", scaling, block=block)
    assert reasons(made)["fp8_linear.triton"].startswith("scales: ")


@pytest.mark.parametrize(
    "scaling", [GROUP, fp8_scaling(FN, "token"), dataclasses.replace(mx_scaling(FN), group=64)]
)
def test_scaled_products_take_e8m0_scales_for_groups_of_32(scaling: Scaling) -> None:
    made = problem("mxfp4_linear", "gfx950", scaling)
    assert reasons(made)["mxfp4_linear.triton_scaled"].startswith("scales: ")


def test_e8m0_scales_are_for_groups_of_32() -> None:
    kinds = (
        TensorType(FN, (4, 256)),
        TensorType("e8m0", (4, 4)),
        TensorType(FN, (64, 256)),
        TensorType("e8m0", (64, 8)),
    )
    scaling = dataclasses.replace(mx_scaling(FN), group=64)
    graph = Graph("case")
    names = [graph.add_input(f"x{i}", kind) for i, kind in enumerate(kinds)]
    attrs: Mapping[str, Attr] = {"dtype": "bf16", "has_bias": False, "weight_block": (1, 32)}
    node = graph.add("fp8_linear", names, {**attrs, **scaling.attrs()})
    choice = choose(graph, node, target_named("gfx950"))
    assert "triton_scaled: scales: " in choice.reason


@pytest.mark.parametrize(
    ("op", "scaling", "block"),
    [
        ("fp8_linear", GROUP, (1, 128)),
        ("fp8_linear", mx_scaling(FN), (1, 32)),
        ("mxfp4_linear", mx_scaling(FN), (1, 32)),
        ("mxfp4_linear", None, (1, 32)),
    ],
)
def test_results_and_weights_that_are_refused(
    op: str, scaling: Scaling | None, block: tuple[int, int]
) -> None:
    made = problem(op, "gfx950", scaling, block=block)
    kernel = choose(made.graph, made.node, made.target).kernel
    assert kernel is not None
    for dtype, columns, code in (("f64", 64, "dtype"), ("bf16", symbol("n"), "shape")):
        graph = Graph("case", {"n": (1, 128)})
        for name in made.graph.inputs:
            kind = made.graph.type(name)
            shape = tuple(columns if size == 64 else size for size in kind.shape)
            graph.add_input(name, kind.with_shape(shape))
        node = graph.add(op, list(graph.inputs), {**made.node.attrs, "dtype": dtype})
        refusal = kernel.supports(graph, node, made.target)
        assert refusal is not None and refusal.startswith(f"{code}: ")


def test_sums_are_split_until_every_unit_has_a_program() -> None:
    tile, target = Tile(64, 128, 128, 4, 2), target_named("gfx950")
    assert splits_of(7168, 16, tile, target) == 14
    assert splits_of(7168, 256, tile, target) == 1
    assert splits_of(512, 1, tile, target) == 1
    for length in range(128, 8192, 160):
        splits = splits_of(length, 8, tile, target)
        steps = -(-length // tile.depth)
        part = -(-steps // splits)
        assert (splits - 1) * part < steps <= splits * part, "a part without a step"


MATRIX = {
    ("gfx942", "fp8_linear.triton"): "v_mfma_f32_16x16x32_fp8_fp8",
    ("gfx950", "fp8_linear.triton"): "v_mfma_f32_16x16x128_f8f6f4",
    ("gfx950", "fp8_linear.triton_scaled"): "v_mfma_scale_f32_16x16x128_f8f6f4",
    ("gfx950", "mxfp4_linear.triton_scaled"): "v_mfma_scale_f32_16x16x128_f8f6f4",
    ("gfx942", "mxfp4_linear.triton_dequant"): "v_mfma_f32_16x16x16_bf16",
    ("gfx950", "mxfp4_linear.triton_dequant"): "v_mfma_f32_16x16x32_bf16",
}


@pytest.mark.parametrize(("target_name", "name"), MATRIX)
def test_matrix_instructions(target_name: str, name: str) -> None:
    target = target_named(target_name)
    case = next(case for case in gpu_cases(target) if _chosen(case, target_name) == name)
    record = next(kernel for kernel in kernels()[case.op] if kernel.name == name)
    graph, node = case.node()
    source = record.launches(case.call(graph, node, target))[0].code
    assert isinstance(source, TritonSource)
    function = getattr(importlib.import_module(source.module), source.function)
    given = [each for each in function.arg_names if each not in dict(source.constants)]
    assert given == [each for each, _ in source.signature]
    built = fitted(build_triton(source, target), source, target)
    assert MATRIX[target_name, name] in built.machine.mfma
    assert built.machine.widest_load == 16 and not built.machine.forbidden
    assert not built.resources["vgpr_spills"] and not built.resources["scratch_bytes"]


def _chosen(case: GpuCase, target_name: str) -> str:
    if case.op not in ("fp8_linear", "mxfp4_linear"):
        return ""
    graph, node = case.node()
    kernel = choose(graph, node, target_named(target_name)).kernel
    return "" if kernel is None else kernel.name
