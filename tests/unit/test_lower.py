"""Lowered graphs compute what the interpreter computes, on memory full of NaN."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lowered_graphs import BATCH, SEQ, GraphMaker, discontinuous
from lowered_runner import (
    Array,
    Compiled,
    assert_close,
    decoded,
    host_target,
    inputs_of,
    stored,
)

import fusec.lower.lowering
from fusec.diagnostics import UnsupportedError
from fusec.ir import Attr, Graph, TensorType, Weight, parse_graph
from fusec.ir.interpret import interpret
from fusec.ir.weights import from_array
from fusec.kernels.registry import Choice
from fusec.lower import lower
from fusec.lower.steps import KernelStep, step_buffers
from fusec.target import target_named


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("objects")


@pytest.fixture
def only_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel is chosen, so that code is generated for all it can be."""
    monkeypatch.setattr(fusec.lower.lowering, "choose", lambda *about: Choice(None))


def assert_agrees(compiled: Compiled, inputs: dict[str, Array]) -> None:
    assert_close(compiled.graph, compiled(inputs), inputs)


@pytest.mark.usefixtures("only_generated")
@settings(
    deadline=None,
    max_examples=30,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 1 << 32))
def test_random_graphs(cache: Path, seed: int) -> None:
    graph = GraphMaker(random.Random(seed)).make()
    compiled = Compiled(graph, cache)
    if discontinuous(graph):
        return
    for batch, seq in ((2, 5), (1, 1), (3, 33)):
        assert_agrees(compiled, inputs_of(graph, seed % 1000, batch=batch, seq=seq))


def graph_of(*inputs: tuple[str, TensorType]) -> Graph:
    graph = Graph("case", {"batch": (0, 8), "seq": (0, 8192)})
    for name, kind in inputs:
        graph.add_input(name, kind)
    return graph


def finish(graph: Graph, *outputs: str) -> Graph:
    graph.outputs = list(outputs)
    graph.output_names = [f"y{number}" for number in range(len(outputs))]
    graph.verify()
    return graph


def norm_like() -> Graph:
    """A row region: two reductions whose results are used along the same row."""
    graph = graph_of(("x", TensorType("bf16", (BATCH, SEQ, 40))), ("w", TensorType("bf16", (40,))))
    wide = graph.add("cast", ["x"], {"dtype": "f32"}).output
    mean = graph.add("reduce_mean", [wide], {"axes": (-1,), "keepdims": True}).output
    centred = graph.add("sub", [wide, mean]).output
    square = graph.add("mul", [centred, centred]).output
    variance = graph.add("reduce_mean", [square], {"axes": (-1,), "keepdims": True}).output
    scale = graph.add("rsqrt", [variance]).output
    normed = graph.add("mul", [centred, scale]).output
    narrow = graph.add("cast", [normed], {"dtype": "bf16"}).output
    return finish(graph, graph.add("mul", [narrow, "w"]).output)


def test_a_norm_written_out_is_one_launch(cache: Path) -> None:
    graph = norm_like()
    compiled = Compiled(graph, cache)
    assert compiled.lowered.launches == 1
    assert_agrees(compiled, inputs_of(graph, 0, batch=3, seq=7))


@pytest.mark.parametrize(("batch", "seq"), [(0, 5), (3, 0), (0, 0), (1, 1)])
def test_sizes_of_zero_and_one(cache: Path, batch: int, seq: int) -> None:
    graph = norm_like()
    results = Compiled(graph, cache)(inputs_of(graph, 0, batch=batch, seq=seq))
    assert results["y0"].shape == (batch, seq, 40)


def test_views_of_nothing_begin_where_their_buffer_does(cache: Path) -> None:
    graph = graph_of(("x", TensorType("f32", (0, 3))))
    turned = graph.add("flip", ["x"], {"axes": (0,)}).output
    joined = graph.add("concat", [turned, "x"], {"axis": 1}).output
    finish(
        graph, joined, graph.add("reduce_sum", [joined], {"axes": (0,), "keepdims": False}).output
    )
    assert_agrees(Compiled(graph, cache), inputs_of(graph, 0))


@pytest.mark.parametrize(("rows", "columns"), [(5, 6), (2, 6), (5, 2), (2, 2)])
def test_views_begin_in_their_buffer_where_sizes_leave_nothing(
    rows: int, columns: int, cache: Path
) -> None:
    graph = parse_graph(
        """
graph @main(%x: f32[n, k]) symbols(n in [2, 64], k in [2, 64]) {
  %a: f32[n - 2, k] = slice(%x) {axis = 0, start = 2, stop = <n>, step = 1}
  %corner: f32[n - 2, k - 2] = slice(%a) {axis = 1, start = 2, stop = <k>, step = 1}
  %turned: f32[n, k] = flip(%x) {axes = [0]}
  %b: f32[n - 2, k] = slice(%turned) {axis = 0, start = 2, stop = <n>, step = 1}
  %y: f32[n - 2, k - 2] = tanh(%corner)
  %z: f32[n - 2, k] = tanh(%b)
  return %y as "y", %z as "z"
}
"""
    )
    assert_agrees(Compiled(graph, cache), inputs_of(graph, 0, n=rows, k=columns))


@pytest.mark.usefixtures("only_generated")
@pytest.mark.parametrize("how", ["broadcast", "expanded", "expanded and summed"])
def test_rows_of_one_element_are_not_the_rows_that_they_are_broadcast_to(
    how: str, cache: Path
) -> None:
    graph = graph_of(
        ("x", TensorType("f32", (BATCH, SEQ, 1))), ("y", TensorType("f32", (BATCH, SEQ, 8)))
    )
    attrs: dict[str, Attr] = {"axes": (2,), "keepdims": True}
    reduced = graph.add("logsumexp", ["x"], attrs).output
    beside = graph.add("tanh", ["x"]).output
    if how != "broadcast":
        beside = graph.add("expand", [beside], {"shape": (BATCH, SEQ, 8)}).output
    if how == "expanded and summed":
        last = graph.add("reduce_sum", [beside], attrs)
    else:
        last = graph.add("mul", [beside, "y"])
    finish(graph, reduced, last.output)
    assert_agrees(Compiled(graph, cache), inputs_of(graph, 0, batch=3, seq=5))


@pytest.mark.usefixtures("only_generated")
@pytest.mark.parametrize("op", ["reduce_mean", "argmax", "softmax", "cumsum"])
def test_rows_that_are_repeated_are_all_computed(op: str, cache: Path) -> None:
    graph = graph_of(("x", TensorType("f32", (BATCH, SEQ, 8))))
    made = graph.add("tanh", ["x"]).output
    total = graph.add("reduce_sum", [made], {"axes": (2,), "keepdims": True}).output
    repeated = graph.add("expand", [made], {"shape": (2, BATCH, SEQ, 8)}).output
    attrs: dict[str, Attr] = {"axes": (3,)} if op == "reduce_mean" else {"axis": 3}
    if op in ("reduce_mean", "argmax"):
        attrs["keepdims"] = False
    finish(graph, total, graph.add(op, [repeated], attrs).output)
    assert_agrees(Compiled(graph, cache), inputs_of(graph, 0, batch=3, seq=5))


def test_long_sums_are_accurate(cache: Path) -> None:
    graph = graph_of(("x", TensorType("f32", (BATCH, SEQ))))
    total = graph.add("reduce_sum", ["x"], {"axes": (1,), "keepdims": False}).output
    finish(graph, total)
    x = np.random.default_rng(0).random((2, 8192), np.float32)
    result = Compiled(graph, cache)({"x": x})["y0"]
    np.testing.assert_allclose(result, x.sum(axis=1, dtype=np.float64), rtol=1e-6)


def test_values_are_not_rounded_inside_a_region(cache: Path) -> None:
    graph = graph_of(("x", TensorType("bf16", (SEQ,))))
    one = graph.add("constant", [], {"value": 1.0, "dtype": "bf16", "shape": ()}).output
    raised = graph.add("add", ["x", one]).output
    finish(graph, graph.add("sub", [raised, one]).output)
    x = stored(np.full(5, 2.0**-12), "bf16")
    np.testing.assert_array_equal(Compiled(graph, cache)({"x": x})["y0"], x)


def test_casts_round_where_the_result_is_read(cache: Path) -> None:
    graph = graph_of(("x", TensorType("f32", (SEQ,))))
    narrow = graph.add("cast", ["x"], {"dtype": "bf16"}).output
    finish(graph, graph.add("cast", [narrow], {"dtype": "f32"}).output)
    x = np.random.default_rng(0).standard_normal(33).astype(np.float32)
    expected = decoded(stored(x, "bf16"), "bf16")
    np.testing.assert_array_equal(Compiled(graph, cache)({"x": x})["y0"], expected)


def test_not_a_number_comes_through(cache: Path) -> None:
    graph = graph_of(("x", TensorType("f32", (BATCH, SEQ))), ("y", TensorType("f32", (BATCH, SEQ))))
    outputs = [graph.add(op, ["x", "y"]).output for op in ("maximum", "minimum")]
    outputs += [graph.add("relu", ["x"]).output]
    outputs += [graph.add("clamp", ["x"], {"min": -1.0, "max": 1.0}).output]
    for op in ("reduce_max", "reduce_min"):
        outputs.append(graph.add(op, ["x"], {"axes": (1,), "keepdims": False}).output)
    finish(graph, *outputs)
    x, y = np.random.default_rng(0).standard_normal((2, 3, 37)).astype(np.float32)
    x[1, 4] = y[2, 5] = np.nan
    inputs = {"x": x, "y": y}
    results, expected = Compiled(graph, cache)(inputs), interpret(graph, inputs)
    for name in graph.output_names:
        np.testing.assert_array_equal(results[name], expected[name].astype(np.float32))


def test_integers_divide_as_in_python(cache: Path) -> None:
    graph = graph_of(("x", TensorType("i64", (SEQ,))), ("y", TensorType("i64", (SEQ,))))
    finish(graph, *(graph.add(op, ["x", "y"]).output for op in ("floordiv", "mod")))
    low = -(2**63)
    inputs = {"x": np.array([7, -7, 7, -7, low, 0]), "y": np.array([2, 2, -2, -2, -1, 5])}
    results = Compiled(graph, cache)(inputs)
    assert results["y0"].tolist() == [3, -4, -4, 3, low, 0]
    assert results["y1"].tolist() == [1, 1, -1, -1, 0, 0]


def test_floats_become_integers_without_surprise(cache: Path) -> None:
    graph = graph_of(("x", TensorType("f32", (SEQ,))))
    outputs = [graph.add("cast", ["x"], {"dtype": d}).output for d in ("i64", "i32", "i8", "u8")]
    finish(graph, *outputs)
    x = np.array([1.9, -1.9, np.nan, np.inf, -np.inf, 3e9, 300.0], np.float32)
    results = Compiled(graph, cache)({"x": x})
    assert results["y0"].tolist() == [1, -1, 0, 2**63 - 1, -(2**63), 3_000_000_000, 300]
    assert results["y1"].tolist() == [1, -1, 0, 2**31 - 1, -(2**31), 2**31 - 1, 300]
    assert results["y2"].tolist() == [1, -1, 0, 127, -128, 127, 127]
    assert results["y3"].tolist() == [1, 0, 0, 255, 0, 255, 255]


def test_views_make_no_launches() -> None:
    graph = graph_of(("x", TensorType("f32", (BATCH, SEQ, 64))))
    split = graph.add("reshape", ["x"], {"shape": (BATCH, SEQ, 4, 16)}).output
    turned = graph.add("transpose", [split], {"perm": (0, 2, 1, 3)}).output
    part = graph.add("slice", [turned], {"axis": 1, "start": 1, "stop": 4, "step": 2}).output
    mirrored = graph.add("flip", [part], {"axes": (3,)}).output
    finish(graph, graph.add("neg", [mirrored]).output)
    assert lower(graph, host_target()).launches == 1


@pytest.mark.usefixtures("only_generated")
def test_joined_axes_are_walked_apart_rather_than_copied(cache: Path) -> None:
    graph = graph_of(("x", TensorType("bf16", (BATCH, SEQ, 4, 24))))
    part = graph.add("slice", ["x"], {"axis": 3, "start": 8, "stop": 24, "step": 1}).output
    joined = graph.add("reshape", [part], {"shape": (BATCH, SEQ, 64)}).output
    wave = graph.add("sigmoid", [joined]).output
    total = graph.add("reduce_sum", [wave], {"axes": (2,), "keepdims": True}).output
    finish(graph, graph.add("div", [wave, total]).output)
    compiled = Compiled(graph, cache)
    assert compiled.lowered.launches == 1
    assert_agrees(compiled, inputs_of(graph, 0, batch=2, seq=3))


@pytest.mark.usefixtures("only_generated")
def test_operands_of_one_region_join_axes_of_their_own(cache: Path) -> None:
    left, right = TensorType("f32", (3, 2, 20)), TensorType("f32", (6, 5, 4))
    graph = graph_of(("x", left), ("y", right))
    rows = graph.add("transpose", ["x"], {"perm": (1, 0, 2)}).output
    columns = graph.add("transpose", ["y"], {"perm": (0, 2, 1)}).output
    joined = [graph.add("reshape", [each], {"shape": (6, 20)}).output for each in (rows, columns)]
    finish(graph, graph.add("sub", joined).output)
    compiled = Compiled(graph, cache)
    assert compiled.lowered.launches == 1
    assert_agrees(compiled, inputs_of(graph, 0))


@pytest.mark.usefixtures("only_generated")
def test_what_is_neither_joined_nor_split_is_copied(cache: Path) -> None:
    graph = graph_of(("x", TensorType("f32", (4, 6))))
    places = graph.add("iota", [], {"size": 24, "start": 0, "step": 1, "dtype": "f32"}).output
    turned = graph.add("transpose", ["x"], {"perm": (1, 0)}).output
    regrouped = graph.add("reshape", [turned], {"shape": (8, 3)}).output
    doubled = graph.add("add", [places, places]).output
    numbered = graph.add("reshape", [doubled], {"shape": (8, 3)}).output
    pairs = graph.add("reshape", [turned], {"shape": (12, 2)}).output
    twice = graph.add("concat", [pairs, pairs], {"axis": 1}).output
    finish(graph, graph.add("sub", [regrouped, numbered]).output, twice)
    compiled = Compiled(graph, cache)
    ops = sorted(step.op for step in compiled.lowered.kernel_steps)
    assert ops == ["add", "concat", "concat", "copy", "sub"]
    assert_agrees(compiled, inputs_of(graph, 0))


@pytest.mark.usefixtures("only_generated")
def test_places_are_numbered_along_whole_axes(cache: Path) -> None:
    graph = graph_of(("x", TensorType("bf16", (BATCH, SEQ, 4, 24))))
    part = graph.add("slice", ["x"], {"axis": 3, "start": 8, "stop": 24, "step": 1}).output
    joined = graph.add("reshape", [part], {"shape": (BATCH, SEQ, 64)}).output
    best = graph.add("argmax", [joined], {"axis": 2, "keepdims": False}).output
    finish(graph, best)
    compiled = Compiled(graph, cache)
    assert [each.op for each in compiled.lowered.kernels] == ["copy", "argmax"]
    assert_agrees(compiled, inputs_of(graph, 0, batch=2, seq=3))


def test_transposed_results_are_written_as_they_are_read(cache: Path) -> None:
    graph = graph_of(("x", TensorType("f32", (BATCH, SEQ, 4, 16))))
    raised = graph.add("exp", ["x"]).output
    turned = graph.add("transpose", [raised], {"perm": (0, 2, 1, 3)}).output
    flat = graph.add("reshape", [turned], {"shape": (4 * BATCH * SEQ, 16)}).output
    finish(graph, flat)
    compiled = Compiled(graph, cache)
    assert compiled.lowered.launches == 1
    assert_agrees(compiled, inputs_of(graph, 0, batch=2, seq=3))


def test_each_output_has_memory_of_its_own(cache: Path) -> None:
    """A value may be returned twice, also in another shape, and so may an input."""
    graph = graph_of(("x", TensorType("f32", (4, 6))))
    raised = graph.add("exp", ["x"]).output
    flat = graph.add("reshape", [raised], {"shape": (24,)}).output
    finish(graph, raised, raised, flat, "x", "x")
    compiled = Compiled(graph, cache)
    buffers = [item["buffer"] for item in compiled.document["outputs"]]
    assert len({*buffers, compiled.document["inputs"][0]["buffer"]}) == 6
    assert_agrees(compiled, inputs_of(graph, 1))


def test_constants_in_memory(cache: Path) -> None:
    graph = graph_of(("x", TensorType("f32", (BATCH, SEQ))))
    table = graph.add(
        "constant", [], {"value": (1.5, -2.0, 3.25), "dtype": "bf16", "shape": (3,)}
    ).output
    zeros = graph.add("full", [], {"value": 0.5, "dtype": "f32", "shape": (2, 3)}).output
    count = graph.add("constant", [], {"value": BATCH * SEQ, "dtype": "i64", "shape": ()}).output
    wide = graph.add("full", [], {"value": SEQ, "dtype": "f32", "shape": (BATCH, 2)}).output
    finish(graph, table, zeros, count, wide)
    compiled = Compiled(graph, cache)
    assert sum(each.kind == "weight" for each in compiled.lowered.buffers) == 2
    assert_agrees(compiled, inputs_of(graph, 0, batch=2, seq=3))


def test_producers_write_into_concatenations(cache: Path) -> None:
    graph = graph_of(("x", TensorType("f32", (BATCH, 8))), ("y", TensorType("f32", (BATCH, 8))))
    left = graph.add("exp", ["x"]).output
    right = graph.add("mul", ["x", "y"]).output
    joined = graph.add("concat", [left, right, left], {"axis": 1}).output
    finish(graph, joined)
    compiled = Compiled(graph, cache)
    assert compiled.lowered.launches == 1
    assert compiled.lowered.plan.slots == ()
    assert len(compiled.lowered.kernel_steps[0].launch.operands) == 2 + 3
    assert_agrees(compiled, inputs_of(graph, 0, batch=3))


@pytest.mark.usefixtures("only_generated")
def test_what_is_read_already_is_not_computed_later(cache: Path) -> None:
    graph = graph_of(("x", TensorType("f32", (BATCH, SEQ))))
    powers = graph.add("exp", ["x"]).output
    shift: dict[str, Attr] = {"low": (0, 1), "high": (0, -1), "value": 0.0}
    shifted = graph.add("pad", [powers], shift).output
    finish(graph, graph.add("sub", [powers, shifted]).output)
    assert_agrees(Compiled(graph, cache), inputs_of(graph, 0, batch=3, seq=5))


def test_a_part_is_written_over_what_was_there(cache: Path) -> None:
    graph = graph_of(("x", TensorType("f32", (BATCH, 7, 3))), ("y", TensorType("f32", (1, 3, 3))))
    window: dict[str, Attr] = {"axis": 1, "start": 1, "stop": 7, "step": 2}
    wide = graph.add("expand", ["y"], {"shape": (BATCH, 3, 3)}).output
    finish(graph, graph.add("slice_scatter", ["x", wide], window).output)
    assert_agrees(Compiled(graph, cache), inputs_of(graph, 0, batch=2))


def test_kernels_write_into_concatenations_once(cache: Path) -> None:
    graph = graph_of(("x", TensorType("f32", (BATCH, 8))), ("y", TensorType("f32", (BATCH, 5))))
    attrs: dict[str, Attr] = {"eps": 1e-6, "has_weight": False, "weight_offset": 0}
    normed = graph.add("rms_norm", ["x"], attrs).output
    inner = graph.add("concat", ["y", normed], {"axis": 1}).output
    outer = graph.add("concat", [inner, "y"], {"axis": 1}).output
    other = graph.add("rms_norm", ["y"], attrs).output
    finish(graph, outer, graph.add("concat", [other, other], {"axis": 1}).output)
    compiled = Compiled(graph, cache)
    ops = [step.op for step in compiled.lowered.kernel_steps]
    assert ops == ["rms_norm", "concat", "concat", "rms_norm", "concat", "concat"]
    assert compiled.lowered.plan.slots == ((graph.type(other).nbytes,),)
    assert_agrees(compiled, inputs_of(graph, 0, batch=3))


def test_outputs_have_memory_of_their_own(cache: Path) -> None:
    graph = graph_of(("x", TensorType("f32", (BATCH, 8))))
    graph.add_parameter("w", from_array("w", "f32", np.arange(8, dtype=np.float32)))
    added = graph.add("add", ["x", "w"]).output
    turned = graph.add("transpose", [added], {"perm": (1, 0)}).output
    part = graph.add("slice", [added], {"axis": 1, "start": 2, "stop": 5, "step": 1}).output
    finish(graph, "x", added, turned, part, "w", added)
    compiled = Compiled(graph, cache)
    assert_agrees(compiled, inputs_of(graph, 0, batch=3))


def layers(count: int) -> Graph:
    graph = graph_of(("x", TensorType("f32", (BATCH, SEQ, 16))))
    value = "x"
    for number in range(count):
        array = np.full(16, number, np.float32)
        weight: Weight = from_array(f"w{number}", "f32", array)
        graph.add_parameter(f"w{number}", weight)
        normed = graph.add("softmax", [value], {"axis": 2}).output
        value = graph.add("mul", [normed, f"w{number}"]).output
        value = graph.add("reshape", [value], {"shape": (BATCH * SEQ, 16)}).output
        value = graph.add("transpose", [value], {"perm": (1, 0)}).output
        value = graph.add("reshape", [value], {"shape": (16 * BATCH * SEQ,)}).output
        value = graph.add("reshape", [value], {"shape": (BATCH, SEQ, 16)}).output
    return finish(graph, value)


@pytest.mark.usefixtures("only_generated")
def test_layers_share_functions() -> None:
    few, many = lower(layers(2), host_target()), lower(layers(9), host_target())
    assert len(few.functions) == len(many.functions)
    assert many.launches > few.launches
    assert few.generated_source() == many.generated_source()


def test_lowering_is_the_same_in_every_process() -> None:
    code = """
import random
from lowered_graphs import GraphMaker
from fusec.lower import lower
from fusec.lower.program import program_document
from fusec.target import CPU_ARCHES
for seed in range(12):
    lowered = lower(GraphMaker(random.Random(seed)).make(), CPU_ARCHES["x86-64-v3"])
    print(lowered.generated_source(), program_document(lowered, None))
"""
    texts = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parent)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert texts[0] == texts[1] != ""


@pytest.mark.usefixtures("only_generated")
def test_every_buffer_is_written_before_it_is_read() -> None:
    lowered = lower(layers(5), host_target())
    ready = {*lowered.inputs.values()}
    ready |= {number for number, each in enumerate(lowered.buffers) if each.kind == "weight"}
    for step in lowered.steps:
        assert isinstance(step, KernelStep)
        assert set(step_buffers(step)) - step.written <= ready
        ready |= step.written
    assert {storage.buffer for storage in lowered.outputs} <= ready
    assert lowered.arena_bytes <= 2 * 4 * 8 * 8192 * 16


@pytest.mark.usefixtures("only_generated")
def test_what_nothing_computes_is_residual_with_a_reason() -> None:
    graph = graph_of(("x", TensorType("f32", (BATCH, 8))))
    kind = TensorType("f32", (BATCH, 8))
    unknown = graph.add("aten.special_i0", ["x"], types=[kind]).output
    sorted_values = graph.add("sort", [unknown], {"axis": 1, "descending": False, "stable": True})
    finish(graph, sorted_values.outputs[0])
    residual = lower(graph, host_target()).residual
    assert [each.op for each in residual] == ["aten.special_i0", "sort"]
    assert "aten.special_i0" in residual[0].reason
    assert residual[0].model != residual[1].model


@pytest.mark.parametrize(
    ("op", "hint"),
    [
        ("aten.acosh.default", "allow these to run on the host with `--allow-host-fallback`"),
        ("aten.nextafter.default", "does without `aten.nextafter.default`, which no target runs"),
    ],
)
def test_a_gpu_that_lacks_an_operation_says_what_has_it(op: str, hint: str) -> None:
    kind = TensorType("f32", (BATCH, 8))
    graph = graph_of(("x", kind))
    operands = ["x", "x"] if "nextafter" in op else ["x"]
    args = tuple(f"%{place}" for place in range(len(operands)))
    finish(graph, graph.add(op, operands, {"args": args, "kwargs": ()}, types=[kind]).output)
    with pytest.raises(UnsupportedError) as refused:
        lower(graph, target_named("gfx942"))
    assert hint in str(refused.value.hint)


def test_a_size_that_depends_on_data_is_refused() -> None:
    text = """\
graph @main(%x: f32[n, 4]) symbols(n in [1, 8], found in [0, 32]) {
  %k: i64[2, found] = onnx.ai.NonZero(%x) {_version = 18}
  return %k as "k"
}
"""
    with pytest.raises(UnsupportedError, match="`found` depends on data"):
        lower(parse_graph(text), host_target())
