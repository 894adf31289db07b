"""`quantise` and the passes over experts, by numbers: before, after, and in padded memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fusec.dtypes import f32_to_bf16
from fusec.formats import Scaling, encode
from fusec.ir import Graph, TensorType, Weight
from fusec.ir.interpret import interpret
from fusec.ir.weights import Quantised, concatenated, dequantised, from_array, has_lost_codes
from fusec.options import settings_of
from fusec.passes.loop_experts import stacked_weight
from fusec.passes.moe_fp8 import MoeFp8
from fusec.passes.moe_mxfp4_dequant import MoeMxfp4Dequant
from fusec.passes.moe_mxfp4_native import MoeMxfp4Native
from fusec.passes.quantise import Quantise
from fusec.report import details_text
from fusec.rewrite import DecisionLog, run_pipeline
from fusec.target import target_named

RANDOM = np.random.default_rng(0)
PASSES = (Quantise, MoeFp8, MoeMxfp4Native, MoeMxfp4Dequant)
GPUS = ("gfx950", "gfx942", "sm_90")


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape)


def plain(name: str, *shape: int) -> Weight:
    return from_array(name, "f32", normal(*shape).astype(np.float32))


def fp8_held(name: str, shape: tuple[int, ...], block: tuple[int, int], **more: Any) -> Quantised:
    """Codes of e4m3fn, some of them negative zero, with f32 scales."""
    values = normal(*shape) * 100
    values[..., ::7] = -0.0
    blocks = (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))
    scale = np.exp(normal(*blocks)).astype(np.float32)
    codes = from_array(f"{name}.codes", "f8e4m3fn", encode(values, "f8e4m3fn"))
    return Quantised(codes, from_array(f"{name}.scale", "f32", scale), block, **more)


def mxfp4_held(name: str, *shape: int, turned: bool = False) -> Quantised:
    pairs = RANDOM.integers(0, 256, (*shape[:-1], shape[-1] // 2), dtype=np.uint8)
    codes = from_array(f"{name}.codes", "f4e2m1x2", pairs)
    scale = RANDOM.integers(120, 130, (*shape[:-1], shape[-1] // 32), dtype=np.uint8)
    return Quantised(codes, from_array(f"{name}.scale", "e8m0", scale), (1, 32), turned)


def run_passes(graph: Graph, target: str, *quantize: str, align: str = "pad") -> DecisionLog:
    graph.verify()
    settings, log = settings_of(quantize, align, 1), DecisionLog()
    passes = [each.configured(settings) for each in PASSES]
    run_pipeline(passes, graph, target_named(target), log, verify_each=True)
    return log


def only(graph: Graph, op: str) -> Any:
    (found,) = [node for node in graph.nodes() if node.op == op]
    return found


# --- linears --------------------------------------------------------------------------------


def linear_graph(weight: Weight, dtype: str = "bf16") -> Graph:
    graph = Graph("case")
    x = graph.add_input("x", TensorType(dtype, (5, weight.shape[1])))
    w = graph.add_parameter("w", weight)
    b = graph.add_parameter("b", from_array("b", "f32", normal(weight.shape[0]).astype("f4")))
    if dtype != "f32":
        b = graph.add_parameter("c", from_array("c", dtype, np.zeros(weight.shape[0], "u2")))
    y = graph.add("linear", [x, w, b]).output
    graph.outputs, graph.output_names = [graph.add("relu", [y]).output, y], ["relu", "y"]
    return graph


def check_linear(graph: Graph, op: str, values: np.ndarray, *, near: float) -> None:
    """The result is that of the rows as they are quantised, and near that of the rows."""
    x = normal(*(5, values.shape[1]))
    got = interpret(graph, {"x": x})["y"]
    attrs = only(graph, op).attrs
    rows = x
    if "granularity" in attrs:
        scaling = Scaling.of(attrs)
        given = attrs["granularity"] == "tensor"
        scale = graph.parameters[only(graph, op).inputs[1]].load() if given else None
        codes, scales = scaling.quantise(x, None if scale is None else scale.astype(np.float64))
        rows = codes * scaling.expanded(scales, x.shape)
    bias = graph.parameters["b"].load() if "b" in graph.parameters else 0
    bias = bias if got.shape[1:] == np.shape(bias) and "c" not in graph.parameters else 0
    np.testing.assert_allclose(got, rows @ values.T + bias, rtol=1e-5, atol=1e-5)
    error = np.linalg.norm(got - x @ values.T - bias) / np.linalg.norm(x @ values.T)
    assert error <= near
    assert np.linalg.norm(2 * got - x @ values.T) / np.linalg.norm(x @ values.T) > 0.5


@pytest.mark.parametrize("target", GPUS)
@pytest.mark.parametrize("format", ["fp8-tensor", "fp8-token", "fp8-block"])
def test_linears_are_quantised_on_request(format: str, target: str) -> None:
    weight = plain("w", 200, 256)
    graph = linear_graph(weight, "f32")
    log = run_passes(graph, target, f"{format}:w")
    assert [(row.fusion, row.status) for row in log] == [("quantise", "fired")]
    assert graph.type(only(graph, "fp8_linear").inputs[2]).dtype == target_named(target).fp8
    x = normal(5, 256)
    got = interpret(graph, {"x": x})["y"]
    wanted = x @ weight.load().T + graph.parameters["b"].load()
    assert 0 < np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 0.06


@pytest.mark.parametrize("target", GPUS)
@pytest.mark.parametrize("block", [(128, 128), (1, 256), (200, 256), (100, 256), (1, 64)])
def test_linears_keep_the_codes_of_the_source(block: tuple[int, int], target: str) -> None:
    held = fp8_held("w", (200, 256), block)
    graph = linear_graph(dequantised("w", "bf16", held))
    run_passes(graph, target)
    check_linear(graph, "fp8_linear", held.values(), near=0.06)


@pytest.mark.parametrize("target", GPUS)
def test_a_scale_of_the_source_for_the_rows(target: str) -> None:
    scale = from_array("w.input_scale", "f32", np.array([0.02], np.float32))
    held = fp8_held("w", (40, 60), (40, 60), input_scale=scale)
    graph = linear_graph(dequantised("w", "bf16", held))
    run_passes(graph, target)
    given = graph.parameters[only(graph, "quantize").inputs[1]].load()
    np.testing.assert_array_equal(given, np.float32(0.04 if target == "gfx942" else 0.02))
    check_linear(graph, "fp8_linear", held.values(), near=0.06)


@pytest.mark.parametrize("align", ["pad", "reject"])
@pytest.mark.parametrize("target", GPUS)
def test_mxfp4_linears(target: str, align: str) -> None:
    held = mxfp4_held("w", 200, 288)
    graph = linear_graph(dequantised("w", "bf16", held))
    run_passes(graph, target, align=align)
    node = only(graph, "mxfp4_linear")
    assert node.attrs["has_x_scale"] is (target == "gfx950" and align == "pad")
    sizes = (256, 256) if align == "pad" else (200, 144)
    assert graph.parameters["w.codes"].memory_shape == sizes
    check_linear(graph, "mxfp4_linear", held.values(), near=0.06)


def test_mxfp8_linears() -> None:
    weight = plain("w", 200, 288)
    graph = linear_graph(weight, "f32")
    run_passes(graph, "gfx950", "mxfp8:w")
    x = normal(5, 288)
    got = interpret(graph, {"x": x})["y"]
    wanted = x @ weight.load().T + graph.parameters["b"].load()
    assert 0 < np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 0.06


def test_what_is_quantised_is_not_quantised_anew() -> None:
    held = fp8_held("w", (200, 256), (128, 128))
    graph = linear_graph(dequantised("w", "bf16", held))
    run_passes(graph, "gfx950", "mxfp4")
    assert graph.parameters[only(graph, "fp8_linear").inputs[2]] is held.codes


def test_lost_codes_are_said() -> None:
    held = dequantised("w", "bf16", fp8_held("w", (64, 128), (128, 128)))
    turned = held.derive("w^T", TensorType("bf16", (128, 64)), "transpose", lambda bits: bits.T)
    graph = linear_graph(turned)
    (row,) = run_passes(graph, "gfx950")
    assert (row.code, row.reason) == (
        "scales",
        "the codes of `%w` were lost: its values were changed (transpose)",
    )
    assert [row.status for row in run_passes(graph, "gfx950", "fp8-token:w*")] == ["fired"]


def test_a_weight_that_two_linears_read_is_brought_into_few_bits_once() -> None:
    graph = Graph("case")
    x = graph.add_input("x", TensorType("bf16", (5, 256)))
    w = graph.add_parameter("w", dequantised("w", "bf16", fp8_held("w", (256, 256), (128, 128))))
    first = graph.add("linear", [x, w]).output
    second = graph.add("linear", [graph.add("relu", [first]).output, w]).output
    graph.outputs, graph.output_names = [graph.add("add", [first, second]).output], ["y"]
    before = interpret(graph, {"x": normal(5, 256) / 1000})["y"]
    assert len(run_passes(graph, "gfx942")) == 2
    assert sum(weight.type.dtype == "f8e4m3fnuz" for weight in graph.parameters.values()) == 1
    assert before.shape == (5, 256)


def test_scales_of_joined_weights() -> None:
    parts = [
        fp8_held(name, (rows, 64), (rows, 64), input_scale=from_array(name, "f32", scale))
        for name, rows, scale in (
            ("q", 48, np.array([0.5], np.float32)),
            ("k", 16, np.array([0.75], np.float32)),
        )
    ]
    weights = tuple(dequantised("w", "f32", part) for part in parts)
    joined = concatenated("q+k", weights, 0).quantised
    assert joined is not None and joined.input_scale is not None
    assert joined.block == (1, 64)
    np.testing.assert_array_equal(
        joined.values(), np.concatenate([part.values() for part in parts])
    )
    np.testing.assert_array_equal(joined.input_scale.load(), [np.float32(0.75)])


@pytest.mark.parametrize("block", [(16, 32), (1, 64), (32, 64)])
def test_matrices_of_experts_keep_their_codes_when_stacked(block: tuple[int, int]) -> None:
    held = [fp8_held(f"e{number}", (32, 64), block) for number in range(6)]
    parts = [dequantised(f"w{number}", "f32", part) for number, part in enumerate(held)]
    stacked = stacked_weight(parts, (3, 64, 64))
    assert stacked.quantised is not None
    wanted = np.concatenate([part.values() for part in held]).reshape(3, 64, 64)
    np.testing.assert_array_equal(stacked.quantised.values(), wanted)
    np.testing.assert_array_equal(stacked.load(), wanted.astype(np.float32))


def test_joining_that_loses_codes_is_known() -> None:
    held = dequantised("w", "f32", fp8_held("w", (20, 64), (16, 32)))
    joined = concatenated("w+v", (held, plain("v", 8, 64)), 0)
    assert has_lost_codes(joined) and not has_lost_codes(held)
    assert has_lost_codes(concatenated("x", (joined, plain("v", 8, 64)), 0))
    assert not has_lost_codes(concatenated("v+v", (plain("v", 8, 64), plain("u", 8, 64)), 0))


# --- experts --------------------------------------------------------------------------------

OAI = {"activation": "swiglu_oai", "alpha": 1.702, "limit": 7.0}
SILU = {"activation": "silu", "alpha": None, "limit": None}


def experts_graph(
    gate_up: Weight, down: Weight, *, transposed: bool, layout: str, act: dict[str, Any]
) -> Graph:
    graph = Graph("case")
    count, hidden = gate_up.shape[0], down.shape[2 if transposed else 1]
    rows = gate_up.shape[2 if transposed else 1]
    dtype = gate_up.type.dtype
    x = graph.add_input("x", TensorType(dtype, (7, hidden)))
    share = graph.add_input("share", TensorType(dtype, (7, 2)))
    chosen = graph.add_input("chosen", TensorType("i64", (7, 2)))
    biases = [plain(name, count, size) for name, size in (("bg", rows), ("bd", hidden))]
    values = [graph.add_parameter(w.name, w) for w in (gate_up, down, *biases)]
    attrs = {**act, "gated": True, "has_bias": True, "transposed": transposed}
    attrs["gate_up_layout"] = layout
    y = graph.add("moe", [x, share, chosen, *values], attrs).output
    graph.outputs, graph.output_names = [y], ["y"]
    return graph


def tokens(graph: Graph) -> dict[str, np.ndarray]:
    hidden = int(str(graph.type("x").shape[1]))
    chosen = RANDOM.integers(0, 3, (7, 2))
    return {"x": normal(7, hidden), "share": np.abs(normal(7, 2)), "chosen": chosen}


@pytest.mark.parametrize("target", GPUS)
@pytest.mark.parametrize("align", ["pad", "reject"])
@pytest.mark.parametrize(
    ("transposed", "layout", "act"), [(True, "interleaved", OAI), (False, "split", SILU)]
)
def test_mxfp4_experts(
    target: str, align: str, transposed: bool, layout: str, act: dict[str, Any]
) -> None:
    held = [
        mxfp4_held("gu", 3, 192, 288, turned=transposed),
        mxfp4_held("dn", 3, 288, 96, turned=transposed),
    ]
    weights = [dequantised(part.codes.name[:2], "bf16", part) for part in held]
    graph = experts_graph(*weights, transposed=transposed, layout=layout, act=act)
    given = tokens(graph)
    before = interpret(graph, given)["y"]
    log = run_passes(graph, target, align=align)
    after = interpret(graph, given)["y"]
    native = target == "gfx950" and align == "pad"
    code = "mxfp4.align" if target == "gfx950" else "mxfp4.arch"
    rows = {row.fusion: row for row in log}
    if native:
        assert list(rows) == ["moe_mxfp4_native"]
        error = np.linalg.norm(after - before) / np.linalg.norm(before)
        assert 0 < error < 0.12
    else:
        assert list(rows) == ["moe_mxfp4_native", "moe_mxfp4_dequant"]
        assert rows["moe_mxfp4_native"].code == code
        (rejected,) = rows["moe_mxfp4_dequant"].rejected
        assert (rejected["backend"], rejected["code"]) == ("moe_mxfp4_native", code)
        np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-9)
    pads = (224, 160) if align == "pad" else (0, 0)
    node = only(graph, "moe_mxfp4")
    assert (node.attrs["hidden_pad"], node.attrs["intermediate_pad"]) == pads
    fired = rows["moe_mxfp4_native" if native else "moe_mxfp4_dequant"]
    assert (fired.details["hidden_pad"], fired.details["intermediate_pad"]) == pads
    if align == "pad":
        check_memory(graph, given, after)


def check_memory(graph: Graph, given: dict[str, np.ndarray], wanted: np.ndarray) -> None:
    """A kernel that computes all of the padded memory gives the same, and zeros beside it."""
    node = only(graph, "moe_mxfp4")
    pad = node.attrs["hidden_pad"]
    wide = Graph("wide")
    hidden = given["x"].shape[1] + pad
    x = wide.add_input("x", TensorType("bf16", (7, hidden)))
    rows = [x]
    if node.attrs["has_x_scale"]:
        scaling = only(graph, "quantize").attrs
        rows = list(wide.add("quantize", [x], scaling).outputs)
    rows.append(wide.add_input("share", TensorType("bf16", (7, 2))))
    rows.append(wide.add_input("chosen", TensorType("i64", (7, 2))))
    weights = [graph.parameters[value] for value in node.inputs[len(rows) :]]
    for weight in weights:
        assert weight.type.padded is not None
        memory = from_array(weight.name, weight.type.dtype, weight.load())
        rows.append(wide.add_parameter(weight.name, memory))
    wide.outputs = [wide.add("moe_mxfp4", rows, node.attrs).output]
    wide.output_names = ["y"]
    got = interpret(wide, {**given, "x": np.pad(given["x"], ((0, 0), (0, pad)))})["y"]
    np.testing.assert_allclose(got[:, : wanted.shape[1]], wanted, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(got[:, wanted.shape[1] :], 0)
    scale = next(weight for weight in weights if weight.type.dtype == "e8m0")
    logical = tuple(slice(size) for size in scale.shape)
    memory_scale = scale.load().copy()
    memory_scale[logical] = 0x7F
    np.testing.assert_array_equal(memory_scale, 0x7F)


TRUE_TYPES = [
    "f4e2m1x2[1, 5760~6144, 1440~1536]",
    "e8m0[1, 5760~6144, 90~96]",
    "f4e2m1x2[1, 2880~3072, 1440~1536]",
    "e8m0[1, 2880~3072, 90~96]",
]


def gpt_oss() -> Graph:
    """One expert of gpt-oss at its true size."""
    held = [
        mxfp4_held("gu", 1, 5760, 2880, turned=True),
        mxfp4_held("dn", 1, 2880, 2880, turned=True),
    ]
    weights = [dequantised(part.codes.name[:2], "bf16", part) for part in held]
    return experts_graph(*weights, transposed=True, layout="interleaved", act=OAI)


def test_gpt_oss_at_its_true_size() -> None:
    graph = gpt_oss()
    for target, first in (("gfx942", 3), ("gfx950", 4)):
        rewritten = graph.copy()
        fired = {row.fusion: row.details for row in run_passes(rewritten, target)}
        node = only(rewritten, "moe_mxfp4")
        assert [
            str(rewritten.type(value)) for value in node.inputs[first : first + 4]
        ] == TRUE_TYPES
        assert (node.attrs["hidden_pad"], node.attrs["intermediate_pad"]) == (192, 192)
        said = details_text({"details": list(fired.values())[-1]})
        assert "hidden 2880 padded to 3072, intermediate 2880 padded to 3072" in said


@pytest.mark.slow
def test_gpt_oss_at_its_true_size_by_numbers() -> None:
    graph = gpt_oss()
    given = {**tokens(graph), "chosen": np.zeros((7, 2), dtype=np.int64)}
    before = interpret(graph, given)["y"]
    run_passes(graph, "gfx942")
    after = interpret(graph, given)["y"]
    np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-9)
    check_memory(graph, given, after)


@pytest.mark.parametrize("target", GPUS)
@pytest.mark.parametrize(
    ("shapes", "blocks", "format"),
    [
        (((256, 256), (256, 128)), ((128, 128), (128, 128)), "fp8-block"),
        (((120, 100), (100, 60)), ((1, 100), (1, 60)), "fp8-token"),
        (((120, 100), (100, 60)), ((120, 100), (100, 60)), "fp8-tensor"),
        (((120, 100), (100, 60)), ((60, 100), (100, 60)), "fp8-token"),
    ],
)
def test_fp8_experts(
    shapes: tuple[tuple[int, int], ...],
    blocks: tuple[tuple[int, int], ...],
    format: str,
    target: str,
) -> None:
    held = [
        fp8_held(name, (3, *shape), block)
        for name, shape, block in zip(("gu", "dn"), shapes, blocks, strict=True)
    ]
    weights = [dequantised(part.codes.name[:2], "bf16", part) for part in held]
    graph = experts_graph(*weights, transposed=False, layout="split", act=SILU)
    given = tokens(graph)
    before = interpret(graph, given)["y"]
    (row,) = run_passes(graph, target)
    assert (row.fusion, row.status, row.details["format"]) == ("moe_fp8", "fired", format)
    after = interpret(graph, given)["y"]
    assert 0 < np.linalg.norm(after - before) / np.linalg.norm(before) < 0.12
    node = only(graph, "moe_fp8")
    for role, (position, part) in enumerate(zip((4, 6), held, strict=True)):
        codes, scale = (graph.parameters[node.inputs[position + each]] for each in (0, 1))
        made = Quantised(codes, scale, node.attrs["weight_block"])
        np.testing.assert_array_equal(made.values(), part.values(), err_msg=str(role))


@pytest.mark.parametrize("format", ["fp8-block", "fp8-token", "fp8-tensor", "mxfp4"])
@pytest.mark.parametrize("transposed", [False, True])
def test_plain_experts_on_request(format: str, transposed: bool) -> None:
    shapes = [(3, 256, 256), (3, 256, 128)]
    if transposed:
        shapes = [(*shape[:1], *shape[:0:-1]) for shape in shapes]
    weights = [
        from_array(name, "bf16", f32_to_bf16(normal(*shape).astype(np.float32)))
        for name, shape in zip(("gu", "dn"), shapes, strict=True)
    ]
    graph = experts_graph(*weights, transposed=transposed, layout="interleaved", act=SILU)
    given = tokens(graph)
    before = interpret(graph, given)["y"]
    run_passes(graph, "gfx950", f"{format}:experts")
    after = interpret(graph, given)["y"]
    limit = 0.3 if format == "mxfp4" else 0.12
    assert 0 < np.linalg.norm(after - before) / np.linalg.norm(before) < limit


def test_a_graph_without_values_is_rewritten_all_the_same() -> None:
    parts = [
        Weight(name, TensorType("bf16", shape), None, name)
        for name, shape in (("gu", (3, 192, 288)), ("dn", (3, 288, 96)))
    ]
    graph = experts_graph(*parts, transposed=False, layout="split", act=SILU)
    run_passes(graph, "gfx950", "mxfp4")
    node = only(graph, "moe_mxfp4")
    assert all(graph.parameters[value].read is None for value in node.inputs[4:8])
