"""Kernels that walk along sequences: what records refuse, and the code at the sizes of models."""

from __future__ import annotations

import dataclasses
import importlib

import pytest
from gpu_cases import ROWS, GpuCase

from fusec.ir import TensorType
from fusec.ir.types import Attr
from fusec.kernels.launch import Call, Storage, TritonSource
from fusec.kernels.registry import Kernel, kernels
from fusec.link.gpu_checks import fitted, unfit
from fusec.link.triton_build import build_triton
from fusec.symbolic import Dim
from fusec.target import GPU_TARGETS, Target, target_named

GFX950 = target_named("gfx950")


def record(op: str) -> Kernel:
    """The Triton kernel of `op`."""
    (found,) = (kernel for kernel in kernels()[op] if kernel.provider == "triton")
    return found


def conv_case(channels: int, dtype: str = "bf16", taps: int = 4, bias: bool = False) -> GpuCase:
    operands = [TensorType(dtype, (1, channels, ROWS)), TensorType(dtype, (channels, taps))]
    if bias:
        operands.append(TensorType(dtype, (channels,)))
    attrs: dict[str, Attr] = {"activation": "silu", "has_bias": bias}
    return GpuCase("causal_conv1d", f"{channels} channels", tuple(operands), attrs)


def delta_case(
    key_heads: int,
    heads: int,
    depth: int,
    width: int,
    *,
    per_channel: bool = False,
    dtype: str = "bf16",
) -> GpuCase:
    q = TensorType(dtype, (1, ROWS, key_heads, depth))
    v = TensorType(dtype, (1, ROWS, heads, width))
    beta = TensorType(dtype, (1, ROWS, heads))
    gate = TensorType("f32", (1, ROWS, heads, *((depth,) if per_channel else ())))
    attrs: dict[str, Attr] = {"scale": depth**-0.5, "eps": 1e-6, "qk_l2_norm": True}
    return GpuCase("gated_delta_rule", f"{heads}x{depth}", (q, q, v, gate, beta), attrs)


def solve_case(a: tuple[Dim, ...], b: tuple[Dim, ...], dtype: str = "f32", **more: Attr) -> GpuCase:
    attrs: dict[str, Attr] = {"upper": False, "unit_diagonal": True, "left": True, **more}
    operands = (TensorType(dtype, a), TensorType(dtype, b))
    return GpuCase("solve_triangular", "a system", operands, attrs)


def scan_case(
    channels: Dim, states: int, dtype: str = "bf16", *, heads: int = 0, groups: int = 1
) -> GpuCase:
    u, b = TensorType(dtype, (1, ROWS, channels)), TensorType(dtype, (1, ROWS, groups, states))
    dt = TensorType("f32", (1, ROWS, heads or channels))
    a = TensorType("f32", (heads, 1) if heads else (channels, states))
    return GpuCase("selective_scan", f"{heads} of {channels}x{states}", (u, dt, a, b, b), {})


REFUSED = [
    (scan_case(64, 16, "f64"), "dtype: `%x0` is f64"),
    (scan_case(ROWS, 16), "shape: channels, heads and states are not known at compile time"),
    (scan_case(64, 257), "states: a channel has 257; a program holds 256"),
    (conv_case(64, "f64"), "dtype: it takes f32, bf16, f16, not f64"),
    (conv_case(64, taps=65), "taps: filters have up to 64 steps, not 65"),
    (delta_case(2, 4, 64, 64, dtype="f64"), "dtype: `%x0` is f64"),
    (delta_case(3, 4, 64, 64), "heads: 4 heads do not share 3 evenly"),
    (delta_case(1, 1, 257, 64), "head-dim: keys have 257 channels"),
    (solve_case((64, 64), (64, 8), "f16"), "dtype: it solves in f32 and f64, not f16"),
    (solve_case((64, 64), (1, 1, 1, 1, 1, 64, 8)), "shape: it takes up to 4 batch dims, not 5"),
    (solve_case((1025, 1025), (1025, 8)), "shape: it solves up to 1024 rows"),
    (solve_case((ROWS, ROWS), (ROWS, 8)), "shape: it solves up to 1024 rows"),
    (solve_case((64, 64), (64, 8), left=False), "side: "),
]


@pytest.mark.parametrize(("case", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_refusals(case: GpuCase, reason: str) -> None:
    graph, node = case.node()
    refused = record(case.op).supports(graph, node, GFX950)
    assert refused is not None and refused.startswith(reason)


def test_values_of_another_dtype_are_refused() -> None:
    case = delta_case(2, 2, 64, 64)
    operands = (*case.operands[:2], TensorType("f32", (1, ROWS, 2, 64)), *case.operands[3:])
    graph, node = dataclasses.replace(case, operands=operands).node()
    refused = record(case.op).supports(graph, node, GFX950)
    assert refused == "dtype: its queries, keys and values are of one dtype"


def test_keys_that_nvidia_gpus_have_no_registers_for() -> None:
    case, target = delta_case(1, 1, 129, 64), target_named("sm_90")
    refused = record(case.op).supports(*case.node(), target)
    assert refused == "head-dim: keys have 129 channels; a program holds 128"
    assert record(case.op).supports(*case.node(), GFX950) is None


@pytest.mark.parametrize("place", [2, 3])
def test_heads_known_at_run_time_only_are_refused(place: int) -> None:
    case = delta_case(2, 2, 64, 64)
    sizes: tuple[Dim, ...] = (1, ROWS, 2, 64)
    shape = tuple(ROWS if axis == place else size for axis, size in enumerate(sizes))
    operands = tuple(TensorType("bf16", shape) for _ in range(3))
    rest = (TensorType("f32", shape[:3]), TensorType("bf16", shape[:3]))
    graph, node = dataclasses.replace(case, operands=(*operands, *rest)).node()
    refused = record(case.op).supports(graph, node, GFX950)
    assert refused is not None and refused.startswith("shape: ")


def test_a_filter_writes_channels_innermost() -> None:
    graph, node = conv_case(64).node()
    assert record("causal_conv1d").output_order(graph, node) == (0, 2, 1)


def laid_out(call: Call) -> Call:
    """`call` with operands as models have them: slices of the rows of a projection."""
    inputs, outputs = list(call.inputs), call.outputs
    if call.node.op == "causal_conv1d":
        channels = inputs[0].shape[1]
        strides = (channels * ROWS, 1, channels)
        inputs[0] = dataclasses.replace(inputs[0], strides=strides)
        outputs = (dataclasses.replace(outputs[0], strides=strides),)
    if call.node.op == "gated_delta_rule":
        row: Dim = sum(storage.shape[2] * storage.shape[3] for storage in inputs[:3])
        inputs[:3] = [_slice_of(storage, row) for storage in inputs[:3]]
    return dataclasses.replace(call, inputs=tuple(inputs), outputs=outputs)


def _slice_of(storage: Storage, row: Dim) -> Storage:
    depth = storage.shape[3]
    return dataclasses.replace(storage, strides=(row * ROWS, row, depth, 1))


def check_code(case: GpuCase, target: Target, vectors: bool = True) -> None:
    """Compile what `case` launches: no memory beside registers, wide loads, matrix units."""
    graph, node = case.node()
    kernel = record(case.op)
    assert kernel.supports(graph, node, target) is None
    for launch in kernel.launches(laid_out(case.call(graph, node, target))):
        source = launch.code
        assert isinstance(source, TritonSource)
        function = getattr(importlib.import_module(source.module), source.function)
        given = [each for each in function.arg_names if each not in dict(source.constants)]
        assert given == [each for each, _ in source.signature]
        compiled = build_triton(source, target)
        assert not [*unfit(compiled, source, launch, target, kernel)], (case.label, source)
        built = fitted(compiled, source, target)
        assert not built.resources["vgpr_spills"] and not built.resources["scratch_bytes"]
        if vectors:
            assert built.machine.widest_load == 16, (case.label, source)
        if case.op == "gated_delta_rule" and target.family == "amdgpu":
            assert built.machine.mfma and all(
                name.startswith("v_mfma") for name in built.machine.mfma
            )
            assert built.waves >= 4


QWEN3_NEXT = [conv_case(8192), delta_case(16, 32, 128, 128)]
KIMI_LINEAR = [conv_case(4096), delta_case(32, 32, 128, 128, per_channel=True)]


@pytest.mark.parametrize("case", QWEN3_NEXT, ids=lambda case: case.op)
def test_code_at_the_sizes_of_qwen3_next(case: GpuCase) -> None:
    check_code(case, GFX950)


@pytest.mark.slow
@pytest.mark.parametrize("target_name", GPU_TARGETS)
@pytest.mark.parametrize("case", [*QWEN3_NEXT, *KIMI_LINEAR], ids=lambda case: str(case.label))
def test_code_at_the_sizes_of_models(case: GpuCase, target_name: str) -> None:
    check_code(case, target_named(target_name))


OTHERS = [
    scan_case(8192, 16),
    scan_case(70, 5, "f32"),
    scan_case(64, 256),
    scan_case(8192, 128, heads=128, groups=8),
    scan_case(8192, 256, heads=128),
    scan_case(8192, 128, "f32", heads=128),
    scan_case(80, 9, "f16", heads=5),
    conv_case(8192, "f32", bias=True),
    conv_case(70, "f16", bias=True),
    delta_case(2, 4, 24, 40, dtype="f32"),
    delta_case(4, 4, 128, 128, dtype="f32"),
    delta_case(4, 4, 128, 128, per_channel=True, dtype="f16"),
    solve_case((ROWS, 64, 64), (ROWS, 64, 128)),
    solve_case((1000, 1000), (1000, 70), "f64", unit_diagonal=False, upper=True),
]


@pytest.mark.slow
@pytest.mark.parametrize("target_name", GPU_TARGETS)
@pytest.mark.parametrize("case", OTHERS, ids=lambda case: f"{case.label}-{case.operands[0].dtype}")
def test_other_sizes_fit_too(case: GpuCase, target_name: str) -> None:
    check_code(case, target_named(target_name), vectors=False)


@pytest.mark.slow
@pytest.mark.parametrize("target_name", ["gfx950", "gfx942"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["heads", "channels"])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_long_keys_fit_too(dtype: str, per_channel: bool, target_name: str) -> None:
    case = delta_case(2, 4, 256, 256, per_channel=per_channel, dtype=dtype)
    check_code(case, target_named(target_name))
