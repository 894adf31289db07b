"""Records of float products: what they refuse, and the machine code at the sizes of models."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from gpu_cases import ROWS, GpuCase

from fusec.ir import TensorType
from fusec.ir.types import Attr
from fusec.kernels.launch import TritonSource
from fusec.kernels.registry import Kernel, choose
from fusec.link.gpu_checks import fitted, unfit
from fusec.link.triton_build import build_triton
from fusec.symbolic import symbol
from fusec.target import GPU_TARGETS, Target, target_named

CHECKOUT = str(Path(__file__).parents[2]).encode()


def linear_case(n: int, k: int, dtype: str = "bf16", bias: bool = False) -> GpuCase:
    operands = [TensorType(dtype, (ROWS, k)), TensorType(dtype, (n, k))]
    if bias:
        operands.append(TensorType(dtype, (n,)))
    return GpuCase("linear", f"linear {n}x{k} {dtype}", tuple(operands), {})


def chosen(case: GpuCase, target: Target) -> Kernel:
    graph, node = case.node()
    kernel = choose(graph, node, target).kernel
    assert kernel is not None
    return kernel


def check_code(case: GpuCase, target: Target, load: int = 16) -> set[str]:
    """Compile what `case` launches; the matrix instructions of its first launch."""
    graph, node = case.node()
    record = chosen(case, target)
    instructions: list[set[str]] = []
    for launch in record.launches(case.call(graph, node, target)):
        source = launch.code
        assert isinstance(source, TritonSource)
        function = getattr(importlib.import_module(source.module), source.function)
        given = [each for each in function.arg_names if each not in dict(source.constants)]
        assert given == [each for each, _ in source.signature]
        compiled = build_triton(source, target)
        assert not [*unfit(compiled, source, launch, target, record)], (case.label, source)
        built = fitted(compiled, source, target)
        assert not built.resources["vgpr_spills"] and not built.resources["scratch_bytes"]
        assert CHECKOUT not in built.code
        instructions.append(set(built.machine.mfma))
        if target.family == "amdgpu":
            assert built.machine.widest_load >= load, (case.label, source)
            assert built.waves >= 4
    return instructions[0]


MODELS = [
    (6144, 4096, "Llama-3 8B qkv"),
    (28672, 4096, "Llama-3 8B gate and up"),
    (2112, 7168, "DeepSeek-V3 qkv_a"),
    (129280, 7168, "DeepSeek-V3 lm_head"),
    (5120, 2880, "gpt-oss qkv"),
    (128, 2880, "gpt-oss router"),
]
"""N, K and whose they are."""

MFMA = {
    "gfx942": "v_mfma_f32_16x16x16_bf16",
    "gfx950": "v_mfma_f32_16x16x32_bf16",
    "sm_90": "wgmma",
}


@pytest.mark.parametrize("target_name", GPU_TARGETS)
@pytest.mark.parametrize(("n", "k", "words"), [MODELS[0], MODELS[3], MODELS[4]])
def test_linear_at_the_sizes_of_models(target_name: str, n: int, k: int, words: str) -> None:
    case = linear_case(n, k, bias=words.startswith("gpt-oss"))
    found = check_code(case, target_named(target_name))
    assert any(name.startswith(MFMA[target_name]) for name in found), found


@pytest.mark.slow
@pytest.mark.parametrize("target_name", GPU_TARGETS)
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize(("n", "k", "words"), MODELS)
def test_every_linear(target_name: str, dtype: str, n: int, k: int, words: str) -> None:
    check_code(linear_case(n, k, dtype), target_named(target_name), 4 if dtype == "f32" else 16)


@pytest.mark.parametrize("target_name", ["gfx942", "gfx950"])
def test_f32_has_matrix_instructions_of_its_own(target_name: str) -> None:
    found = check_code(linear_case(256, 7168, "f32"), target_named(target_name), 4)
    assert "v_mfma_f32_16x16x4_f32" in found


@pytest.mark.parametrize("target_name", GPU_TARGETS)
def test_ragged_sizes_fit_too(target_name: str) -> None:
    check_code(linear_case(1001, 4095), target_named(target_name), 2)


REFUSED: list[tuple[str, tuple[TensorType, ...], dict[str, Attr], str]] = [
    (
        "linear",
        (TensorType("f64", (4, 8)), TensorType("f64", (16, 8))),
        {},
        "linear.triton: dtype: it computes f32, bf16, f16, not f64",
    ),
    (
        "linear",
        (TensorType("bf16", (4, 8)), TensorType("bf16", (symbol("rows"), 8))),
        {},
        "linear.triton: shape: the weight is `bf16[rows, 8]`",
    ),
]


@pytest.mark.parametrize(("op", "operands", "attrs", "reason"), REFUSED)
def test_refusals(
    op: str, operands: tuple[TensorType, ...], attrs: dict[str, Attr], reason: str
) -> None:
    graph, node = GpuCase(op, "", operands, attrs).node()
    choice = choose(graph, node, target_named("gfx950"))
    assert reason in [str(refused)[: len(reason)] for refused in choice.refused]
