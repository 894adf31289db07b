"""Records of float products: what they refuse, and the machine code at the sizes of models."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from gpu_cases import ROWS, GpuCase, gpu_cases

from fusec.ir import TensorType
from fusec.ir.types import Attr
from fusec.kernels.launch import Call, Storage, TritonSource, dense_strides
from fusec.kernels.registry import Kernel, choose
from fusec.link.gpu_checks import fitted, unfit
from fusec.link.triton_build import build_triton
from fusec.symbolic import Dim
from fusec.target import GPU_TARGETS, Target, target_named

CHECKOUT = str(Path(__file__).parents[2]).encode()


def linear_case(n: int, k: int, dtype: str = "bf16", bias: bool = False) -> GpuCase:
    operands = [TensorType(dtype, (ROWS, k)), TensorType(dtype, (n, k))]
    if bias:
        operands.append(TensorType(dtype, (n,)))
    return GpuCase("linear", f"linear {n}x{k} {dtype}", tuple(operands), {})


def epilogue_case(activation: str, *, has_residual: bool) -> GpuCase:
    shapes: list[tuple[Dim, ...]] = [(ROWS, 3072), (12288, 3072), (12288,)]
    if has_residual:
        shapes.append((ROWS, 12288))
    attrs: dict[str, Attr] = {"activation": activation, "has_bias": True}
    operands = tuple(TensorType("bf16", shape) for shape in shapes)
    label = f"{activation}, residual {has_residual}"
    return GpuCase("linear_epilogue", label, operands, {**attrs, "has_residual": has_residual})


def conv_case(
    words: str,
    x: tuple[Dim, ...],
    weight: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    groups: int = 1,
    dtype: str = "bf16",
) -> GpuCase:
    operands = (TensorType(dtype, x), TensorType(dtype, weight), TensorType(dtype, weight[:1]))
    ones = (1,) * len(stride)
    attrs: dict[str, Attr] = {"stride": stride, "padding": padding, "dilation": ones}
    return GpuCase("conv", words, operands, {**attrs, "groups": groups})


def chosen(case: GpuCase, target: Target) -> Kernel:
    graph, node = case.node()
    kernel = choose(graph, node, target).kernel
    assert kernel is not None
    return kernel


def laid_out(call: Call, orders: Mapping[int, tuple[int, ...]]) -> Call:
    """`call` with the axes of operands in other orders in memory, and a place for errors."""
    inputs = list(call.inputs)
    for index, order in orders.items():
        held = inputs[index]
        steps = dense_strides(tuple(held.shape[axis] for axis in order))
        strides = tuple(steps[order.index(axis)] for axis in range(len(order)))
        inputs[index] = dataclasses.replace(held, strides=strides)
    error = Storage(1000, "i64", (1,), (1,))
    return dataclasses.replace(call, inputs=tuple(inputs), error=lambda: error)


def check_code(
    case: GpuCase,
    target: Target,
    load: int = 16,
    orders: Mapping[int, tuple[int, ...]] = MappingProxyType({}),
) -> set[str]:
    """Compile what `case` launches; the matrix instructions of the last one, for most rows."""
    graph, node = case.node()
    record = chosen(case, target)
    instructions: list[set[str]] = []
    for launch in record.launches(laid_out(case.call(graph, node, target), orders)):
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
    return instructions[-1]


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
@pytest.mark.parametrize(("n", "k", "words"), [MODELS[3], MODELS[4]])
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


@pytest.mark.parametrize("target_name", GPU_TARGETS)
@pytest.mark.parametrize(
    "case",
    [
        case
        for case in gpu_cases(target_named("gfx950"))
        if case.op == "linear_epilogue" and "gelu" in case.label
    ]
    + [
        pytest.param(epilogue_case("gelu", has_residual=False), marks=pytest.mark.slow),
        pytest.param(epilogue_case("silu", has_residual=False), marks=pytest.mark.slow),
        pytest.param(epilogue_case("relu", has_residual=False), marks=pytest.mark.slow),
        pytest.param(epilogue_case("none", has_residual=True), marks=pytest.mark.slow),
    ],
    ids=lambda case: case.label,
)
def test_what_follows_a_linear_leaves_registers(target_name: str, case: GpuCase) -> None:
    found = check_code(case, target_named(target_name))
    assert any(name.startswith(MFMA[target_name]) for name in found), found


MATRICES = [
    ("MLA absorbed", (ROWS, 128, ROWS, 128), (1, 128, 128, 512), {0: (0, 2, 1, 3)}),
    ("queries by keys", (ROWS, 32, ROWS, 128), (ROWS, 32, 128, ROWS), {1: (0, 3, 1, 2)}),
]


@pytest.mark.parametrize("target_name", GPU_TARGETS)
@pytest.mark.parametrize(("words", "a", "b", "orders"), MATRICES)
def test_matmul_at_the_sizes_of_models(
    target_name: str,
    words: str,
    a: tuple[Dim, ...],
    b: tuple[Dim, ...],
    orders: Mapping[int, tuple[int, ...]],
) -> None:
    case = GpuCase("matmul", words, (TensorType("bf16", a), TensorType("bf16", b)), {})
    found = check_code(case, target_named(target_name), orders=orders)
    assert any(name.startswith(MFMA[target_name]) for name in found), found


@pytest.mark.parametrize("target_name", GPU_TARGETS)
@pytest.mark.parametrize("order", [pytest.param((0, 1, 2), marks=pytest.mark.slow), (0, 2, 1)])
def test_grouped_mm_at_the_sizes_of_models(target_name: str, order: tuple[int, ...]) -> None:
    kinds = (("bf16", (ROWS, 2048)), ("bf16", (128, 2048, 1536)), ("i32", (128,)))
    operands = tuple(TensorType(dtype, shape) for dtype, shape in kinds)
    case = GpuCase("grouped_mm", "Qwen3 gate and up", operands, {})
    found = check_code(case, target_named(target_name), orders={1: order})
    assert any(name.startswith(MFMA[target_name]) for name in found), found


CONVOLUTIONS = [
    (
        "conv.triton_patches",
        16,
        conv_case(
            "Qwen2-VL patches", (ROWS, 3, 2, 14, 14), (1280, 3, 2, 14, 14), (2, 14, 14), (0, 0, 0)
        ),
    ),
    (
        "conv.triton",
        16,
        conv_case("CLIP patches", (ROWS, 3, 224, 224), (768, 3, 16, 16), (16, 16), (0, 0)),
    ),
    ("conv.triton", 16, conv_case("Whisper", (ROWS, 1280, 3000), (1280, 1280, 3), (2,), (1,))),
    (
        "conv.triton_direct",
        2,
        conv_case("depthwise", (ROWS, 512, 56, 56), (512, 1, 7, 7), (1, 1), (3, 3), 512),
    ),
    (
        "conv.triton_direct",
        8,
        conv_case("f64", (ROWS, 8, 56), (64, 8, 3), (1,), (1,), dtype="f64"),
    ),
]


@pytest.mark.parametrize("target_name", GPU_TARGETS)
@pytest.mark.parametrize(("name", "load", "case"), CONVOLUTIONS)
def test_conv_at_the_sizes_of_models(target_name: str, name: str, load: int, case: GpuCase) -> None:
    target = target_named(target_name)
    assert chosen(case, target).name == name
    found = check_code(case, target, load)
    assert not found if load < 16 else any(each.startswith(MFMA[target_name]) for each in found)


@pytest.mark.parametrize("filters", [8, 32])
def test_conv_is_told_the_places_of_a_channel(filters: int) -> None:
    """In 4 bytes: the runtime refuses sizes for which they are not enough."""
    case = conv_case("", (1, 8, ROWS, ROWS), (filters, 8, 3, 3), (1, 1), (1, 1))
    graph, node = case.node()
    target = target_named("gfx950")
    (launch,) = chosen(case, target).launches(case.call(graph, node, target))
    source = launch.code
    assert isinstance(source, TritonSource)
    kinds = [kind for _, kind in source.signature[len(launch.operands) :]]
    assert (ROWS * ROWS, "i32") in zip(launch.params, kinds, strict=True)


REFUSED = [
    (
        GpuCase("linear", "", (TensorType("f64", (4, 8)), TensorType("f64", (16, 8))), {}),
        "linear.triton: dtype: it computes f32, bf16, f16, not f64",
    ),
    (
        GpuCase("linear", "", (TensorType("bf16", (4, 8)), TensorType("bf16", (ROWS, 8))), {}),
        "linear.triton: shape: the weight is `bf16[rows, 8]`",
    ),
    (
        GpuCase(
            "linear_epilogue",
            "",
            (TensorType("bf16", (4, 8)), TensorType("bf16", (8, 8))),
            {"activation": "relu2", "has_bias": False, "has_residual": False},
        ),
        "linear_epilogue.triton: activation: it computes none, silu, gelu, gelu_tanh, "
        "quick_gelu, relu, relu6, hardswish, not relu2",
    ),
    (
        GpuCase("matmul", "", (TensorType("i8", (4, 8)), TensorType("i8", (8, 4))), {}),
        "matmul.triton: dtype: it computes f32, bf16, f16, f64, i64, i32, not i8",
    ),
    (
        GpuCase(
            "matmul", "", (TensorType("f32", (1,) * 5 + (4, 8)), TensorType("f32", (8, 4))), {}
        ),
        "matmul.triton: shape: it takes up to 4 batch axes, not 5",
    ),
    (
        GpuCase(
            "grouped_mm",
            "",
            (
                TensorType("f64", (4, 8)),
                TensorType("f64", (2, 8, 4)),
                TensorType("i32", (2,)),
            ),
            {},
        ),
        "grouped_mm.triton: dtype: it computes f32, bf16, f16, not f64",
    ),
    (
        GpuCase(
            "grouped_mm",
            "",
            (
                TensorType("f32", (4, 8)),
                TensorType("f32", (2, 8, 4)),
                TensorType("i16", (2,)),
            ),
            {},
        ),
        "grouped_mm.triton: dtype: its offsets are i32 or i64, not i16",
    ),
    (
        GpuCase(
            "grouped_mm",
            "",
            (
                TensorType("f32", (4, 8)),
                TensorType("f32", (2, 8, ROWS)),
                TensorType("i32", (2,)),
            ),
            {},
        ),
        "grouped_mm.triton: shape: the weight is `f32[2, 8, rows]`",
    ),
    (
        conv_case("", (4, 8, 5, 5, 5, 5), (8, 8, 1, 1, 1, 1), (1, 1, 1, 1), (0, 0, 0, 0)),
        "conv.triton_direct: shape: it takes up to 3 spatial axes, not 4",
    ),
    (
        conv_case("", (4, 8, 5), (8, 8, 1), (1,), (0,), dtype="i32"),
        "conv.triton_direct: dtype: it computes f32, bf16, f16 and f64, not i32",
    ),
    (
        conv_case("", (4, 8, 5), (32, 8, 5), (5,), (1,)),
        "conv.triton_patches: shape: x is in groups, or padded",
    ),
    (
        conv_case("", (4, 8, 10), (32, 8, 5), (5,), (0,)),
        "conv.triton_patches: shape: there is more than one patch",
    ),
    (
        conv_case("", (4, 8, 5), (32, 8, 5), (5,), (0,), dtype="f64"),
        "conv.triton_patches: dtype: the matrix units take no f64",
    ),
    (
        conv_case("", (4, 8, 5), (8, 8, 3), (1,), (0,)),
        "conv.triton: shape: a group has 8 filters, too few for a product",
    ),
    (
        conv_case("", (4, 8, 5), (32, 8, 3), (1,), (0,), dtype="f64"),
        "conv.triton: dtype: the matrix units take no f64",
    ),
    (
        conv_case("", (1, 70000, 5), (70000 * 9, 1, 3), (1,), (0,), groups=70000),
        "conv.triton: shape: it takes up to 65535 groups",
    ),
    (
        conv_case("", (1, 8, 1 << 11, 1 << 20), (8, 8, 1, 1), (1, 1), (0, 0)),
        "conv.triton_direct: shape: a channel of the result has up to 2147483647 places",
    ),
]


@pytest.mark.parametrize(("case", "reason"), REFUSED)
def test_refusals(case: GpuCase, reason: str) -> None:
    graph, node = case.node()
    refused = [str(each) for each in choose(graph, node, target_named("gfx950")).refused]
    assert any(each.startswith(reason) for each in refused), refused


def test_a_late_or_wide_weight_is_read_by_its_strides() -> None:
    for case, _ in REFUSED[:2]:
        assert chosen(case, target_named("gfx942")).name == "linear_strided.triton"
