"""The meanings of operations on narrow formats, against what they are made of, and their types."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fusec.dtypes import DTYPES
from fusec.formats import Scaling, encode, encode_e8m0, fp8_scaling, mx_scaling, pack_e2m1
from fusec.ir import Graph, TensorType, Weight
from fusec.ir.interpret import interpret
from fusec.ir.weights import Quantised, concatenated, dequantised, from_array

GROUP = fp8_scaling("f8e4m3fn", "group", group=16)
SCALINGS = [
    GROUP,
    fp8_scaling("f8e4m3fnuz", "token"),
    fp8_scaling("f8e4m3fn", "tensor"),
    fp8_scaling("f8e4m3fn", "group", group=32, power_of_two=True, layout="column"),
    mx_scaling("f4e2m1x2"),
    mx_scaling("f8e4m3fn", "up"),
]


def bf16(graph: Graph, name: str, *shape: int) -> str:
    return graph.add_input(name, TensorType("bf16", shape))


def run(graph: Graph, outputs: tuple[str, ...], seed: int = 0) -> list[np.ndarray]:
    graph.outputs = list(outputs)
    graph.output_names = [f"y{i}" for i in range(len(outputs))]
    graph.verify()
    random = np.random.default_rng(seed)
    inputs = {
        name: random.standard_normal(tuple(int(str(d)) for d in graph.type(name).shape))
        for name in graph.inputs
    }
    return list(interpret(graph, inputs).values())


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("base", ["rms_norm", "add_rms_norm", "silu_mul", "gated_rms_norm"])
def test_a_fused_operation_is_the_two_in_sequence(base: str, scaling: Scaling) -> None:
    attrs: dict[str, Any] = {"eps": 1e-6, "weight_offset": 0, "has_weight": True}
    if base == "gated_rms_norm":
        attrs |= {"activation": "silu", "norm_before_gate": True}
    graph = Graph("case")
    x = bf16(graph, "x", 3, 2, 64)
    operands = {
        "rms_norm": lambda: [x, bf16(graph, "w", 64)],
        "add_rms_norm": lambda: [x, bf16(graph, "r", 3, 2, 64), bf16(graph, "w", 64)],
        "silu_mul": lambda: [x, bf16(graph, "r", 3, 2, 64)],
        "gated_rms_norm": lambda: [x, bf16(graph, "w", 64), bf16(graph, "g", 3, 2, 64)],
    }[base]()
    if base == "silu_mul":
        attrs = {}
    flat = (3, 128)
    plain = graph.add(base, operands, attrs)
    seen = graph.add("reshape", [plain.outputs[0]], {"shape": flat}).output
    codes, scale = graph.add("quantize", [seen], scaling.attrs()).outputs
    fused = graph.add(
        f"{base}_quant", operands, {**attrs, **scaling.attrs(), "shape": flat, "with_plain": True}
    ).outputs
    wanted = (codes, scale, seen, *plain.outputs[1:])
    for a, b in zip(wanted, fused, strict=True):
        assert graph.type(a) == graph.type(b)
    values = run(graph, (*wanted, *fused))
    for got, want in zip(values[len(wanted) :], values[: len(wanted)], strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_dequantize_gives_back_what_is_near(scaling: Scaling) -> None:
    graph = Graph("case")
    x = bf16(graph, "x", 3, 2, 64)
    codes = graph.add("quantize", [x], scaling.attrs()).outputs
    back = graph.add("dequantize", codes, {**scaling.attrs(), "dtype": "f32"}).output
    near, given = run(graph, (back, x))
    assert 0 < np.max(np.abs(near - given)) < 0.3 * np.max(np.abs(given))


def random_weight(name: str, dtype: str, *shape: int, seed: int = 0) -> Weight:
    random = np.random.default_rng(seed)
    if dtype == "f4e2m1x2":
        pairs = random.standard_normal((*shape[:-1], 2 * shape[-1]))
        return from_array(name, dtype, pack_e2m1(pairs))
    values = random.standard_normal(shape)
    if dtype == "e8m0":
        return from_array(name, dtype, encode_e8m0(2.0 ** np.rint(values)))
    if dtype.startswith("f8"):
        return from_array(name, dtype, encode(values, dtype))
    return from_array(name, dtype, np.abs(values).astype(DTYPES[dtype].numpy))


def test_fp8_linear_is_linear_of_the_dequantised() -> None:
    codes, scale = random_weight("w", "f8e4m3fn", 24, 32), random_weight("s", "f32", 3, 2)
    plain = dequantised("plain", "f32", Quantised(codes, scale, (8, 16)))
    graph = Graph("case")
    x = graph.add_input("x", TensorType("f32", (5, 32)))
    xq, xs = graph.add("quantize", [x], GROUP.attrs()).outputs
    back = graph.add("dequantize", [xq, xs], {**GROUP.attrs(), "dtype": "f32"}).output
    values = [graph.add_parameter(w.name, w) for w in (codes, scale, plain)]
    attrs: dict[str, Any] = {**GROUP.attrs(), "weight_block": (8, 16), "dtype": "f32"}
    fused = graph.add("fp8_linear", [xq, xs, *values[:2]], attrs).output
    got, want = run(graph, (fused, graph.add("linear", [back, values[2]]).output))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scaled", [False, True])
def test_mxfp4_experts_are_experts_of_the_dequantised(scaled: bool) -> None:
    scaling = mx_scaling("f8e4m3fn")
    held = [
        Quantised(
            random_weight(f"{name}.c", "f4e2m1x2", 4, rows, columns // 2),
            random_weight(f"{name}.s", "e8m0", 4, rows, columns // 32),
            (1, 32),
        )
        for name, rows, columns in (("gate_up", 64, 64), ("down", 64, 32))
    ]
    attrs: dict[str, Any] = {
        "activation": "silu",
        "gated": True,
        "gate_up_layout": "interleaved",
        "has_bias": False,
    }
    graph = Graph("case")
    x = graph.add_input("x", TensorType("f32", (5, 64)))
    route = graph.add_input("route", TensorType("f32", (5, 2)))
    experts = graph.add("cast", [graph.add("abs", [route]).output], {"dtype": "i64"}).output
    narrow = [part for each in held for part in (each.codes, each.scale)]
    values = [graph.add_parameter(weight.name, weight) for weight in narrow]
    rows, kept = [x], x
    if scaled:
        rows = list(graph.add("quantize", [x], scaling.attrs()).outputs)
        kept = graph.add("dequantize", rows, {**scaling.attrs(), "dtype": "f32"}).output
    pads: dict[str, Any] = {
        "hidden_pad": 0,
        "intermediate_pad": 0,
        "dtype": "f32",
        "has_x_scale": scaled,
    }
    extra = scaling.attrs() if scaled else {}
    fused = graph.add("moe_mxfp4", [*rows, route, experts, *values], {**attrs, **extra, **pads})
    plain = [
        graph.add_parameter(name, dequantised(name, "f32", each))
        for name, each in zip(("p", "q"), held, strict=True)
    ]
    wanted = graph.add("moe", [kept, route, experts, *plain], {**attrs, "transposed": False})
    got, want = run(graph, (fused.output, wanted.output))
    limit = 0.1 if scaled else 1e-6  # the rows between the products are quantised as well
    assert np.max(np.abs(got - want)) <= limit * np.max(np.abs(want))
    assert np.max(np.abs(want)) > 1


def test_joined_weights_keep_their_codes() -> None:
    def part(name: str, rows: int) -> Weight:
        codes = random_weight(f"{name}.c", "f8e4m3fn", rows, 32)
        scale = random_weight(f"{name}.s", "f32", -(-rows // 8), 2)
        return dequantised(name, "bf16", Quantised(codes, scale, (8, 16)))

    joined = concatenated("ab", (part("a", 16), part("b", 12)), 0)
    assert joined.quantised is not None
    np.testing.assert_array_equal(joined.load(), dequantised("x", "bf16", joined.quantised).load())
    assert concatenated("ba", (part("b", 12), part("a", 16)), 0).quantised is None


def test_a_turned_weight() -> None:
    codes, scale = random_weight("c", "f4e2m1x2", 3, 8, 32), random_weight("s", "e8m0", 3, 8, 2)
    turned = dequantised("t", "f32", Quantised(codes, scale, (1, 32), turned=True))
    straight = dequantised("t", "f32", Quantised(codes, scale, (1, 32)))
    assert turned.shape == (3, 64, 8)
    np.testing.assert_array_equal(turned.load(), straight.load().swapaxes(1, 2))
